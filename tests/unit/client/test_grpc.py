"""gRPC bodies in the client: messages by number, by name with a schema, and whatever is broken."""

from __future__ import annotations

import gzip
import struct

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from spliffctl import schema
from spliffctl.errors import ClientError
from spliffctl.parts import Body
from spliffctl.render import protobuf
from spliffctl.render.colour import PLAIN
from spliffctl.render.grpc import grpc_lines
from spliffd.pb import spliff_pb2 as pb

PROTO = """
syntax = "proto3";
package lab;
message Inner { string name = 1; repeated uint32 numbers = 2; }
message Question { string text = 1; Inner inner = 2; double real = 3; bytes blob = 4; }
message Answer { int64 count = 1; }
service Lab { rpc Ask(Question) returns (Answer); }
"""


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> schema.Schema:
    folder = tmp_path_factory.mktemp("protos")
    (folder / "lab.proto").write_text(PROTO)
    found = schema.load((), (str(folder),))
    assert found is not None
    return found


def question(known: schema.Schema) -> bytes:
    message = known.message("lab.Lab", "Ask", response=False)
    assert message is not None
    message.text = "café"
    message.inner.name = "in"
    message.inner.numbers.extend([1, 2, 300])
    message.real = 2.5
    message.blob = b"\xff\xfe\x00"
    return message.SerializeToString()


def framed(payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(payload)) + payload


def shown(
    data: bytes, known: schema.Schema | None = None, *, encoding: str = "", response: bool = False
) -> list[str]:
    call = pb.Exchange(grpc=pb.Grpc(service="lab.Lab", method="Ask", encoding=encoding))
    return [
        line.strip("\n") for line in grpc_lines(Body(((0, data),)), call, PLAIN, known, response=response)
    ]


def test_by_number_without_a_schema(known):
    data = question(known)
    assert shown(framed(data) + framed(b"")) == [
        f"    [message 1, {len(data)} B]",
        '    1: "café"',
        "    2 {",
        '      1: "in"',
        "      2: 01 02 ac 02",
        "    }",
        "    3: 4612811918334230528 (2.5)",
        "    4: ff fe 00",
        "    [message 2, 0 B]",
    ]


def test_by_name_with_one(known):
    lines = shown(framed(question(known)), known)
    assert lines[1:4] == ['    text: "café"', "    inner {", '      name: "in"']
    assert "    real: 2.5" in lines
    answer = known.message("lab.Lab", "Ask", response=True)
    answer.count = 7
    assert shown(framed(answer.SerializeToString()), known, response=True)[1:] == ["    count: 7"]


def test_compressed_messages_are_inflated(known):
    data = question(known)
    packed = gzip.compress(data * 1)
    lines = shown(framed(packed, 1), known, encoding="gzip")
    assert lines[0] == f"    [message 1, {len(packed)} B of gzip, {len(data)} B decoded]"
    assert lines[1].startswith("    text: ")
    assert "cannot be decoded" in shown(framed(b"xx", 1), encoding="gzip")[1]
    assert "not known here" in shown(framed(b"xx", 1), encoding="snappy")[1]
    bomb = gzip.compress(bytes(64 << 20))
    assert "too large" in shown(framed(bomb, 1), encoding="gzip")[1]


def test_escape_sequences_do_not_reach_the_terminal(known):
    message = known.message("lab.Lab", "Ask", response=False)
    message.text = "\x1b[2J"
    for schema_ in (known, None):
        lines = shown(framed(message.SerializeToString()), schema_)
        assert all(line.isprintable() for line in lines)


def test_what_is_no_protobuf_is_dumped_and_what_is_cut_is_told():
    assert "|....|" in shown(framed(b"\xff\xff\xff\xff"))[1]
    assert (
        shown(framed(b"\x08\x01") + b"\0\0\0\0\x09abc")[-1]
        == "    … 8 bytes of a message that is not whole …"
    )
    body = Body(((0, framed(b"\x08\x01")), (100, b"abc")), ((7, 93),))
    lines = list(grpc_lines(body, pb.Exchange(), PLAIN, None, response=False))
    assert lines[1].strip() == "1: 1"
    assert "93 bytes missing" in lines[-1]


def test_a_method_that_the_schema_does_not_have(known):
    assert known.message("lab.Lab", "Other", response=False) is None
    assert known.message("other.Lab", "Ask", response=False) is None


def test_a_descriptor_set(tmp_path):
    found = descriptor_pb2.FileDescriptorSet()
    file = found.file.add(name="a.proto", package="a", syntax="proto3")
    file.message_type.add(name="M").field.add(name="x", number=1, type=5, label=1)
    file.service.add(name="S").method.add(name="Do", input_type=".a.M", output_type=".a.M")
    path = tmp_path / "set"
    path.write_bytes(found.SerializeToString())
    loaded = schema.load((str(path),), ())
    assert loaded is not None
    assert loaded.message("a.S", "Do", response=True) is not None


@pytest.mark.parametrize("what", ["missing", "broken", "empty folder", "bad proto"])
def test_what_cannot_be_used_is_told(tmp_path, what):
    sets, folders = (), ()
    if what == "missing":
        sets = (str(tmp_path / "none"),)
    elif what == "broken":
        (tmp_path / "set").write_bytes(b"\xff\xff")
        sets = (str(tmp_path / "set"),)
    else:
        folders = (str(tmp_path),)
        if what == "bad proto":
            (tmp_path / "bad.proto").write_text("message {")
    with pytest.raises(ClientError):
        schema.load(sets, folders)
    assert schema.load((), ()) is None


@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes):
    lines = protobuf.lines(data)
    for line in lines or ():
        assert line.isprintable()
    list(shown(data))


def test_nesting_is_bounded():
    data = b"\x08\x80\x01"
    for _ in range(200):
        data = (
            b"\x0a"
            + (bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7]))
            + data
        )
    assert len(list(protobuf.lines(data) or ())) < 100
