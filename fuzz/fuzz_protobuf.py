"""Fuzzes the reading of protobuf messages without a schema, and of gRPC frames around them.

Checked: no exception, bounded output without control characters, and that protobuf's own parser accepts what
is taken for a message (as fields that it does not know).

Run: .venv/bin/python fuzz/fuzz_protobuf.py -max_total_time=60 fuzz/corpus/protobuf
"""

from __future__ import annotations

import sys

import atheris
from google.protobuf.empty_pb2 import Empty

with atheris.instrument_imports(include=["spliffctl.render.protobuf", "spliffctl.render.grpc"]):
    from spliffctl.parts import Body
    from spliffctl.render.colour import PLAIN
    from spliffctl.render.grpc import grpc_lines
    from spliffctl.render.protobuf import MAX_DEPTH, MAX_FIELDS, fields, lines
    from spliffd.pb import spliff_pb2 as pb

CALL = pb.Exchange(protocol="grpc")
CALL.grpc.encoding = "gzip"


def test_one_input(data: bytes) -> None:
    found = fields(data)
    if found is not None:
        assert len(found) <= min(MAX_FIELDS, len(data))
        Empty.FromString(data)
        shown = list(lines(data) or ())
        assert len(shown) <= MAX_DEPTH * 2 * (len(data) + 1)
        assert all(line.isprintable() for line in shown)
    told = list(grpc_lines(Body(((0, data),)), CALL, PLAIN, None, response=False))
    assert all(line.replace("\n", "").isprintable() for line in told)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
