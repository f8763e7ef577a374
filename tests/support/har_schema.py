"""HAR 1.2 as a JSON schema, written from its specification: required names, types, and nothing unknown.

Stricter than the specification in one place: a name that it does not define must begin with an underscore
("custom fields"), so a misspelt field cannot pass as somebody's extension.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
INTEGER = {"type": "integer"}
COUNT = {"type": "integer", "minimum": -1}
TIME = {"type": "number", "minimum": 0}
OPTIONAL_TIME = {"anyOf": [TIME, {"const": -1}]}
DATE = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}


def record(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional, "comment": TEXT},
        "patternProperties": {"^_": {}},
        "additionalProperties": False,
    }


def several(one: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": one}


PAIR = record({"name": TEXT, "value": TEXT})
COOKIE = record(
    {"name": TEXT, "value": TEXT},
    path=TEXT, domain=TEXT, expires=DATE, httpOnly={"type": "boolean"}, secure={"type": "boolean"},
)  # fmt: skip
MESSAGE = {
    "httpVersion": TEXT,
    "cookies": several(COOKIE),
    "headers": several(PAIR),
    "headersSize": COUNT,
    "bodySize": COUNT,
}
PARAMETER = record({"name": TEXT}, value=TEXT, fileName=TEXT, contentType=TEXT)
REQUEST = record(
    {**MESSAGE, "method": TEXT, "url": TEXT, "queryString": several(PAIR)},
    postData=record({"mimeType": TEXT}, text=TEXT, params=several(PARAMETER)),
)
RESPONSE = record(
    {
        **MESSAGE,
        "status": {"type": "integer", "minimum": 0},
        "statusText": TEXT,
        "redirectURL": TEXT,
        "content": record(
            {"size": INTEGER, "mimeType": TEXT}, compression=INTEGER, text=TEXT, encoding={"const": "base64"}
        ),
    }
)
TIMINGS = record(
    {"send": TIME, "wait": TIME, "receive": TIME},
    blocked=OPTIONAL_TIME, dns=OPTIONAL_TIME, connect=OPTIONAL_TIME, ssl=OPTIONAL_TIME,
)  # fmt: skip
ENTRY = record(
    {
        "startedDateTime": DATE,
        "time": TIME,
        "request": REQUEST,
        "response": RESPONSE,
        "cache": record({}),
        "timings": TIMINGS,
    },
    pageref=TEXT, serverIPAddress=TEXT, connection=TEXT,
)  # fmt: skip
CREATOR = record({"name": TEXT, "version": TEXT})
HAR = record(
    {
        "log": record(
            {"version": {"const": "1.2"}, "creator": CREATOR, "entries": several(ENTRY)},
            browser=CREATOR,
            pages=several({}),
        )
    }
)
