"""Types by declaration, contradicted by bytes only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.content.mime import media_type

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
ZIP = b"PK\x03\x04" + bytes(20)


@pytest.mark.parametrize(
    ("declared", "data", "found"),
    [
        ("application/json; charset=utf-8", b"{}", ("application/json", False)),
        ("", PNG, ("image/png", False)),
        ("text/plain", PNG, ("image/png", False)),
        ("Application/JSON", PNG, ("image/png", True)),
        ("image/png", PNG, ("image/png", False)),
        ("image/jpg", b"\xff\xd8\xff\xe0", ("image/jpg", False)),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", ZIP,
         ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", False)),
        ("application/json", ZIP, ("application/zip", True)),
        ("text/html", b"\x1f\x8b\x08\0", ("application/gzip", True)),
        ("application/x-gzip", b"\x1f\x8b\x08\0", ("application/x-gzip", False)),
        ("video/quicktime", b"\0\0\0\x18ftypqt  ", ("video/quicktime", False)),
        ("image/webp", b"RIFF....WEBP", ("image/webp", False)),
        ("text/html", b"<!doctype html>", ("text/html", False)),
        ("", b"", ("", False)),
    ],
)  # fmt: skip
def test_types(declared, data, found):
    assert media_type(declared, data) == found


@given(st.text(max_size=20), st.binary(max_size=20))
def test_nothing_raises(declared, data):
    media_type(declared, data)
