"""What others make of files that spliffctl exports: mitmproxy's own reader, and the published schema of HAR.

Both come with ``make setup``. mitmproxy brings versions of its own of packages that the daemon uses too, so it
runs in a process that sees its folder first.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT6

from tests.support.lab import PYTHON, REPOSITORY

VENV = REPOSITORY / ".venv"

_READ = """
import json, sys
from mitmproxy import io
with open(sys.argv[1], "rb") as file:
    for flow in io.FlowReader(file).stream():
        request, response = flow.request, flow.response
        print(json.dumps({
            "method": request.method, "url": request.url, "version": request.http_version,
            "asked": request.get_text(), "status": response.status_code, "answered": response.get_text(),
            "server": list(flow.server_conn.peername), "tls": flow.server_conn.tls_version,
            "comment": flow.comment, "metadata": json.loads(flow.metadata["spliff"]),
        }))
"""


def mitmproxy_flows(path: Path) -> list[dict[str, Any]]:
    """The flows of a file, as mitmproxy reads them."""
    done = subprocess.run(
        [PYTHON, "-c", _READ, path], env={**os.environ, "PYTHONPATH": str(VENV / "mitmproxy")},
        cwd="/", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def har_validator() -> jsonschema.Draft6Validator:
    """The schema that har-validator validates by."""
    folder = VENV / "node/node_modules/har-schema/lib"
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    registry = Registry().with_resources(
        (schema["$id"].removesuffix("#"), Resource(schema, DRAFT6)) for schema in found
    )
    formats = jsonschema.Draft6Validator.FORMAT_CHECKER  # it tells addresses apart by them
    return jsonschema.Draft6Validator({"$ref": "har.json"}, registry=registry, format_checker=formats)
