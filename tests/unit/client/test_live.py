"""Bodies that are shown as they come, and what is left for the finished exchange."""

from __future__ import annotations

import json

from spliffctl import live
from spliffctl.items import ItemPrinter
from spliffctl.render.colour import PLAIN
from spliffctl.render.text import TextOptions, TextRenderer
from spliffd.pb import spliff_pb2 as pb


class Lines:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def exchange(kind: str, state: str, body: bytes = b"", offset: int = 0, key: int = 7) -> pb.Exchange:
    return pb.Exchange(
        part_key=key,
        protocol="http1",
        start_time_ns=1,
        request=pb.Request(method="GET", authority="a.example", path="/events"),
        response=pb.Response(
            status=200, content_type=kind, body=body, body_offset=offset, body_size=offset + len(body)
        ),
        completeness=pb.Completeness(state=state),
    )


def part(offset: int, data: bytes, *, key: int = 7) -> pb.Item:
    return pb.Item(body_part=pb.BodyPart(part_key=key, response=True, offset=offset, data=data))


def begin(kind: str, key: int = 7) -> pb.Item:
    return pb.Item(progress=pb.Progress(exchange=exchange(kind, "in_progress", key=key)))


def end(kind: str, body: bytes, offset: int) -> pb.Item:
    return pb.Item(exchange=exchange(kind, "aborted", body, offset))


def shown(items: list[pb.Item], *, text: bool = True, bodies: bool = True) -> list[str]:
    out = Lines()
    renderer = TextRenderer(TextOptions(bodies=bodies, utc=True), PLAIN) if text else None
    printer = ItemPrinter(out, renderer, bodies=bodies)
    for item in items:
        printer.show(pb.WatchResponse(items=[item]))
    return out.text.splitlines()


def test_events_are_shown_once_as_they_come():
    lines = shown(
        [part(0, b"data: 0\n\n"), begin("text/event-stream"), part(9, b"data: 1\n\n"),
         end("text/event-stream", b"data: 2\n\n", 18)]
    )  # fmt: skip
    assert "→ GET https://a.example/events" in lines[0]
    assert lines[1].endswith("[in progress]")
    assert [line.strip() for line in lines if "data:" in line] == ["data: 0", "data: 1", "data: 2"]
    assert sum("→ GET" in line for line in lines) == 1
    assert sum(line.endswith("[aborted]") for line in lines) == 1
    assert not any("missing" in line or "not sent" in line for line in lines)


def test_other_bodies_wait_for_their_end():
    lines = shown([begin("text/plain"), part(0, b"one "), end("text/plain", b"two", 4)])
    assert [line.strip() for line in lines if line.startswith("    ")] == ["one", "two"]
    assert sum("→ GET" in line for line in lines) == 1


def test_json_has_a_line_for_each_part_of_a_stream():
    kind = "application/x-ndjson"
    lines = shown([begin(kind), part(0, b"{}\n"), end(kind, b"[]\n", 3)], text=False)
    first, second, third = map(json.loads, lines)
    assert first["progress"]["exchange"]["completeness"] == {"state": "in_progress"}
    assert second["body_part"] == {"part_key": "7", "response": True, "data": "e30K"}
    assert (third["exchange"]["response"]["body"], third["exchange"]["response"]["body_offset"]) == (
        "W10K",
        "3",
    )


def test_json_joins_what_is_no_stream():
    lines = shown([begin("text/plain"), part(0, b"one "), end("text/plain", b"two", 4)], text=False)
    assert [next(iter(json.loads(line))) for line in lines] == ["progress", "exchange"]
    assert json.loads(lines[1])["exchange"]["response"]["body"] == "b25lIHR3bw=="


def test_what_turned_out_not_to_match_is_forgotten():
    known = live.LiveBodies()
    one = known.begin(exchange("text/event-stream", "in_progress"))
    assert known.of_part(part(0, b"x").body_part) is one
    assert known.of_part(pb.BodyPart(part_key=7, response=False)) is None
    known.end(7)
    assert known.of_part(part(0, b"x").body_part) is None


def test_as_many_are_known_as_the_daemon_keeps_parts_of():
    known = live.LiveBodies()
    for key in range(live.MAX_LIVE + 1):
        known.begin(exchange("text/event-stream", "in_progress", key=key))
    assert known.end(0) is None
    assert known.end(live.MAX_LIVE) is not None
