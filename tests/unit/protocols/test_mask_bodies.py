"""Secrets in bodies: masked in place, whatever the pieces."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.config import Access
from spliffd.protocols.mask_bodies import MAX_SECRET, FormMask, JsonMask, MultipartMask, body_mask
from spliffd.protocols.masking import Masker

MASKER = Masker(b"k" * 32, Access().mask_headers, Access().mask_fields)


def masked(kind, data: bytes, sizes=(1 << 30,)) -> bytes:
    mask = kind(MASKER)
    out, at, number = b"", 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        out += mask.feed(data[at : at + size], at + size >= len(data))
        assert len(out) <= at + size
        at += size
        number += 1
    return out


def fit(secret: str, size: int = -1) -> str:
    return MASKER.fit(secret.encode(), size).decode()


S = "hunter2-S3CR3T"

JSON = [
    (f'{{"a": 1, "password": "{S}", "b": 2}}', f'{{"a": 1, "password": "{fit(S)}", "b": 2}}'),
    (f'{{"accessToken" : "{S}"}}', f'{{"accessToken" : "{fit(S)}"}}'),
    ('{"token": ""}', '{"token": ""}'),
    ('{"token": null, "secret": true}', '{"token": null, "secret": true}'),
    ('{"token": 123456789012}', f'{{"token": "{fit("123456789012", 10)}"}}'),
    ('{"otp": 7}', '{"otp": *}'),
    (
        '{"secret": {"a": ["}", 1]}, "b": 1}',
        f'{{"secret": "{fit(json.dumps({"a": ["}", 1]}), 13)}", "b": 1}}',
    ),
    ('{"secret": [], "b": 1}', '{"secret": [], "b": 1}'),
    (r'{"token": "ab\"c\\", "b": "x"}', '{"token": "' + fit(r"ab\"c\\") + '", "b": "x"}'),
    (r'{"pass\u0077ord": "abcdefgh"}', r'{"pass\u0077ord": "' + fit("abcdefgh") + '"}'),
    ('{"a": "token", "b": "password"}', '{"a": "token", "b": "password"}'),
    ('{"tokens": "x", "count:token": "y"}', '{"tokens": "x", "count:token": "y"}'),
    (
        f'data: {{"token": "{S}"}}\n\ndata: {{"a":"b"}}\n\n',
        f'data: {{"token": "{fit(S)}"}}\n\ndata: {{"a":"b"}}\n\n',
    ),
    (f'{{"token": "{S}', f'{{"token": "{fit(S)}'),
    ('{"token":', '{"token":'),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(("plain", "wanted"), JSON)
def test_json(plain, wanted, size):
    assert masked(JsonMask, plain.encode(), (size,)).decode() == wanted
    assert len(plain) == len(wanted)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_json_within_json_strings(size):
    inner = json.dumps(
        {"token": S + '"', "b": [json.dumps({"password": S + "\\", "c": 1})], "n": {"secret": {"x": S}}}
    )
    outer = json.dumps({"body": inner, "z": "end"})
    out = masked(JsonMask, outer.encode(), (size,)).decode()
    assert "S3CR3T" not in out
    found = json.loads(out)
    assert found["z"] == "end"
    within = json.loads(found["body"])
    assert json.loads(within["b"][0])["c"] == 1
    assert within["token"].startswith("*")
    assert within["n"]["secret"].startswith("*")


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=12))
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=6), st.sampled_from(["token", "Api-Key", "a"])), inner, max_size=3
        ),
    ),
    max_leaves=12,
)
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def hide(value, seen: list[str]):
    """Puts a marked secret behind every secret key of a document."""
    if isinstance(value, list):
        return [hide(one, seen) for one in value]
    if isinstance(value, dict):
        hidden = {}
        for key, one in value.items():
            if MASKER.is_field(key.encode("utf-8", "surrogatepass")):
                seen.append(key)
                hidden[key] = f"S3CR3T{one}"
            else:
                hidden[key] = hide(one, seen)
        return hidden
    return value


@given(documents, sizes, st.booleans(), st.sampled_from([None, 1, "\t"]), st.integers(0, 2))
def test_no_secret_of_any_document_shows(document, pieces, ascii_only, indent, levels):
    seen: list[str] = []
    text = json.dumps(hide(document, seen), ensure_ascii=ascii_only, indent=indent)
    for _ in range(levels):
        text = json.dumps({"text": text})
    raw = text.encode("utf-8", "surrogatepass")
    out = masked(JsonMask, raw, pieces)
    assert len(out) == len(raw)
    assert b"S3CR3T" not in out
    if not seen:
        assert out == raw
    assert out == masked(JsonMask, raw)
    for _ in range(levels + 1):
        out = json.loads(out) if isinstance(out, bytes) else json.loads(out["text"])


fields = st.lists(
    st.tuples(st.sampled_from(["a", "token", "user[password]", "b"]), st.text(max_size=12)), max_size=6
)


@given(fields, sizes)
def test_forms(pairs, pieces):
    hidden = [(name, "S3CR3T" + value if MASKER.is_field(name.encode()) else value) for name, value in pairs]
    raw = urlencode(hidden, errors="replace").encode()
    out = masked(FormMask, raw, pieces)
    assert len(out) == len(raw)
    assert b"S3CR3T" not in out
    assert out == masked(FormMask, raw)
    if not any("S3CR3T" in value for _, value in hidden):
        assert out == raw


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_multipart(size):
    text = (
        f'--x\r\nContent-Disposition: form-data; name="password"\r\n\r\n{S}\r\n'
        f'--x\r\nContent-Disposition: form-data; name="a"; filename="token"\r\nContent-Type: t/p\r\n\r\nplain\r\n'
        f"--x\r\nContent-Disposition: form-data; name=token\r\nX: y\r\n\r\n{S}\r\n--x--\r\n"
    )
    assert masked(MultipartMask, text.encode(), (size,)).decode() == text.replace(S, fit(S))


@pytest.mark.parametrize("size", [1000, 70_000, 1 << 20])
def test_long_secrets_are_masked_without_being_held(size):
    long = b"S3CR3T" * 50_000
    for kind, before, after in (
        (JsonMask, b'{"token": "', b'", "b": 1}'),
        (JsonMask, b'{"token": ["', b'"], "b": 1}'),
        (FormMask, b"token=", b"&b=1"),
        (MultipartMask, b'--x\r\nC-D: form-data; name="token"\r\n\r\n', b"\r\n--x--\r\n"),
    ):
        out = masked(kind, before + long + after, (size,))
        assert len(out) == len(before + long + after)
        assert b"S3CR3T" not in out
        assert out.endswith(after[-4:])
        assert out.startswith(before[:6])


def test_what_is_held_back_is_bounded():
    for kind in (JsonMask, FormMask, MultipartMask):
        for beginning in (b'{"token": "', b"token=", b'\r\n; name="token"\r\n\r\n', b'"', b"a", b" " * 100):
            mask = kind(MASKER)
            given_, out = len(beginning), len(mask.feed(beginning, False))
            for _ in range(200):
                out += len(mask.feed(b"a" * 1009, False))
                given_ += 1009
                assert given_ - out <= MAX_SECRET + 2048


def test_after_a_gap_nothing_is_shown_that_may_be_a_secrets_middle():
    mask = JsonMask(MASKER)
    out = mask.feed(b'{"token": "S3C', False) + mask.gap() + mask.feed(b'R3T", "b": 1}', True)
    assert out == b'{"token":' + b"*" * 18
    form = FormMask(MASKER)
    assert (
        form.feed(b"a=1&token=S3", False) + form.gap() + form.feed(b"R3T&b=2&c", True)
        == b"a=1&********" + b"***&b=2&c"
    )
    parts = MultipartMask(MASKER)
    assert b"3" not in parts.feed(b"x", False) + parts.gap() + parts.feed(b"3", True)


@pytest.mark.parametrize(
    ("kind", "first", "wanted"),
    [
        ("application/json; charset=utf-8", b"", JsonMask),
        ("application/problem+json", b"", JsonMask),
        ("Application/X-WWW-Form-Urlencoded", b"", FormMask),
        ("multipart/form-data; boundary=x", b"", MultipartMask),
        ("text/event-stream", b"", JsonMask),
        ("", b' {"a"', JsonMask),
        ("text/plain", b"[", JsonMask),
        ("text/plain", b"hello", type(None)),
        ("image/png", b"{", type(None)),
    ],
)
def test_which_bodies(kind, first, wanted):
    assert type(body_mask(kind, first, MASKER)) is wanted


@given(st.binary(max_size=300), sizes, st.sampled_from([JsonMask, FormMask, MultipartMask]))
def test_nothing_raises_and_nothing_is_lost(data, pieces, kind):
    assert len(masked(kind, data, pieces)) == len(data)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_fuzzing_found(size):
    for text, wanted in (
        (r'{"otp":\+}', r'{"otp":**}'),
        ('{"a": [1, {]token": "S3"}', '{"a": [1, {]token": "S3"}'),
    ):
        assert masked(JsonMask, text.encode(), (size,)).decode() == wanted
    part = b'--x\r\nC-D: form-data; name="token\0"\r\n\r\nplain\r\n--x--'
    assert masked(MultipartMask, part, (size,)) == part


@given(st.text('"\\:{}[],token ', max_size=60), sizes)
def test_broken_json_is_the_same_in_any_pieces(text, pieces):
    raw = b'{"token"' + text.encode()
    assert masked(JsonMask, raw, pieces) == masked(JsonMask, raw)
