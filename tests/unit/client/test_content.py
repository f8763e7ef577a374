"""Bodies as people read them: decoded, indented, listed, and what was done to them told."""

from __future__ import annotations

import gzip
import json
import zlib

import brotli
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from spliffctl.parts import Body
from spliffctl.render.colour import PLAIN
from spliffctl.render.content import MAX_DECODED, content_lines, indented
from spliffd.pb import spliff_pb2 as pb


def shown(data: bytes, *, hexdump: bool = False, body: Body | None = None, **fields) -> list[str]:
    fields.setdefault("body_size", len(data))
    body = Body(((0, data),)) if body is None else body
    return list(content_lines(body, pb.Response(**fields), PLAIN, hexdump=hexdump))


def test_plain_text_is_as_it_was():
    assert shown(b"hello\nworld\n") == ["    hello", "    world"]
    assert shown(b"", body=Body()) == []


@pytest.mark.parametrize(
    ("value", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("br", brotli.compress), ("zstd", zstd.compress)],
)
def test_content_codings(value, encode):
    data = encode(b"hello\n" * 1000)
    first, *lines = shown(data, content_encoding=value, content_type="text/plain")
    assert first == f"    [{value}: {len(data)} B on the wire, 5.9 KiB decoded]"
    assert lines == ["    hello"] * 1000
    # -x: the bytes as they came
    assert shown(data, hexdump=True, content_encoding=value)[0].startswith(f"    00000000  {data[0]:02x} ")


def test_what_the_daemon_decoded_is_not_decoded_again():
    assert shown(b"hello", content_encoding="gzip", decoded_size=5, body_size=25) == [
        "    [gzip: 25 B on the wire, 5 B decoded]",
        "    hello",
    ]


def test_a_stack_in_the_order_of_its_making():
    data = brotli.compress(gzip.compress(b"hello"))
    assert shown(data, content_encoding="gzip, br")[1:] == ["    hello"]


def test_a_body_that_was_cut_is_decoded_as_far_as_it_goes():
    whole = gzip.compress(bytes(str(list(range(5000))), "ascii"), mtime=0)
    lines = shown(whole[:3000], content_encoding="gzip", content_type="text/plain", body_size=len(whole))
    assert lines[1].startswith("    [0, 1, 2")
    assert lines[-1] == f"    … decoded from 3,000 of {len(whole):,} bytes on the wire: the rest is missing …"


def test_a_body_whose_beginning_is_missing():
    data = gzip.compress(b"hello" * 99)
    lines = shown(data, body=Body(((10, data[10:]),), ((0, 10),)), content_encoding="gzip")
    assert "its beginning is missing, so it cannot be decoded: as on the wire" in lines[0]
    assert lines[1].startswith("    0000000a  ")
    assert "10 bytes missing from offset 0" in lines[-1]


def test_lies():
    assert shown(b"plain text", content_encoding="gzip") == [
        "    [not gzip, whatever Content-Encoding says (corrupt)]",
        "    plain text",
    ]
    assert shown(b"x", content_encoding="a\x1bb")[0] == "    [a\\x1bb is not known here: as on the wire]"
    png = b"\x89PNG\r\n\x1a\n" + bytes(9)
    assert (
        shown(png, content_type="text/html")[0]
        == "    [image/png, 17 B; image/png by its bytes, not text/html]"
    )


def test_a_bomb_stops():
    data = gzip.compress(bytes(2 * MAX_DECODED), mtime=0)
    lines = shown(data, content_encoding="gzip")
    assert "decoding stopped after" in lines[-1]
    assert lines[-1].endswith("bytes: bomb; 65,536 are shown …")
    assert len(lines) == 2 + 65_536 // 16


def test_data_is_named_and_dumped():
    lines = shown(b"\x89PNG\r\n\x1a\n" + bytes(8))
    assert lines[0] == "    [image/png, 16 B]"
    assert lines[1] == "    00000000  89 50 4e 47 0d 0a 1a 0a  00 00 00 00 00 00 00 00  |.PNG............|"
    assert shown(b"\0\1\2\xff")[0] == "    [unknown data, 4 B]"


def test_json_is_indented_and_no_value_changes():
    text = b'{"a":[1,{}],"b":"x, \\"y\\": [z]","c":1.10e400,"d":[],"\xc3\xa9\x1b":null}'
    assert shown(text, content_type="application/problem+json") == [
        "    {",
        '      "a": [',
        "        1,",
        "        {}",
        "      ],",
        '      "b": "x, \\"y\\": [z]",',
        '      "c": 1.10e400,',
        '      "d": [],',
        '      "é\\x1b": null',
        "    }",
    ]
    assert shown(b'{"a":1}') == ["    {", '      "a": 1', "    }"]
    assert shown(b"{a,b}") == ["    {a,b}"]  # not JSON, and nobody said so


def test_json_lines_and_cut_json():
    assert list(indented('{"a":1}\n{"b":2}\n')) == ["{", '  "a": 1', "}", "{", '  "b": 2', "}"]
    assert list(indented('{"a": [1, "tr')) == ["{", '  "a": [', "    1,", '    "tr']
    assert len(list(indented("[" * 10_000))) == 10_000


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)


@given(values)
def test_indenting_is_what_the_standard_library_does(value):
    assert "\n".join(indented(json.dumps(value))) == json.dumps(value, indent=2)


def test_forms():
    assert shown(b"user=me+too&p=%C3%A9%1b&flag&a=b=c", content_type="application/x-www-form-urlencoded") == [
        "    user = me too",
        "    p = é\\x1b",
        "    flag",
        "    a = b=c",
    ]


def test_multipart():
    body = (
        b'--xx\r\nContent-Disposition: form-data; name="a"\r\n\r\nhello\r\n--xx\r\n'
        b'Content-Disposition: form-data; name="f"; filename="p\x1b.png"\r\nContent-Type: image/png\r\n\r\n'
        b"\x89PNG\r\n\x1a\n\0\r\n--xx--\r\n"
    )
    assert shown(body, content_type='multipart/form-data; boundary="xx"') == [
        '    part 1: name="a" 5 B',
        "        hello",
        '    part 2: name="f" filename="p\\x1b.png" image/png 9 B',
    ]


@given(st.binary(max_size=99), st.text(max_size=9), st.sampled_from(["", "gzip", "br", "zstd,deflate", "x"]))
def test_nothing_raises_and_no_control_character_comes_out(data, kind, encoding):
    for said in (kind, "application/json", "multipart/x; boundary=a", "application/x-www-form-urlencoded"):
        for line in shown(data, content_type=said.replace("\0", ""), content_encoding=encoding):
            assert all(character.isprintable() or character == "\t" for character in line)
