"""What is a secret, and what stands in its place."""

from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.config import Access
from spliffd.protocols.mask_command import mask_command
from spliffd.protocols.masking import PLAIN, SECRET, URL, Masker

MASKER = Masker(b"k" * 32, Access().mask_headers, Access().mask_fields)


def mark(secret: str) -> str:
    return MASKER.mark(secret.encode()).decode()


def test_equal_secrets_have_equal_masks_and_other_keys_other_ones():
    assert re.fullmatch(r"\*\*\*\(7:[0-9a-f]{8}\)", mark("hunter2"))
    assert mark("hunter2") == mark("hunter2") != mark("hunter3")
    assert Masker(b"other", [], []).mark(b"hunter2") != MASKER.mark(b"hunter2")
    assert MASKER.mark(b"") == b""


def test_masks_of_a_given_length():
    digest = MASKER.digest(b"x" * 12)
    assert MASKER.fit(b"x" * 12) == b"*" + digest.encode() + b"***"
    assert MASKER.fit(b"abcd")[:1] == b"*"
    assert [len(MASKER.fit(b"s" * size)) for size in range(20)] == list(range(20))
    assert MASKER.fit(b"s") == b"*"


@pytest.mark.parametrize("name", ["Authorization", "COOKIE", "set-cookie", "x-api-key", "(unknown)"])
def test_secret_headers(name):
    assert MASKER.kind(name.encode()) == SECRET


def test_other_headers():
    assert [MASKER.kind(name) for name in (b"Location", b"Accept", b"X-API-Key-Id")] == [URL, PLAIN, PLAIN]


@pytest.mark.parametrize(
    ("path", "masked"),
    [
        ("/p?a=1&token=hunter2&b=2", f"/p?a=1&token={mark('hunter2')}&b=2"),
        ("/p?accessToken=x;ACCESS-TOKEN=y", f"/p?accessToken={mark('x')};ACCESS-TOKEN={mark('y')}"),
        ("/p?pass%77ord=x", f"/p?pass%77ord={mark('x')}"),
        ("/p?user[password]=x&user.secret=y", f"/p?user[password]={mark('x')}&user.secret={mark('y')}"),
        ("/cb#access_token=x&state=1", f"/cb#access_token={mark('x')}&state=1"),
        ("/a;jsessionid=ABC?x=1", f"/a;jsessionid={mark('ABC')}?x=1"),
        ("/p?next=https://h/?token=x", f"/p?next=https://h/?token={mark('x')}"),
        ("/p?next=https%3A%2F%2Fh%2F%3Ftoken%3Dx", f"/p?next={mark('https%3A%2F%2Fh%2F%3Ftoken%3Dx')}"),
        ("http://me:word@h/p?q", f"http://{mark('me:word')}@h/p?q"),
        ("/p?token=a=b=c", f"/p?token={mark('a=b=c')}"),
    ],
)
def test_paths(path, masked):
    assert MASKER.path(path) == masked
    assert MASKER.path(path) == masked  # whose names are remembered


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "*",
        "/token/secret",
        "/p?tokens=1&mytoken=2",
        "/p?a=1%3B2&b=c%3Dd",
        "/p?q=token",
        "/p?token=",
        "/p?a=%41&b=ä",
        "/@me",
    ],
)
def test_paths_without_secrets_stay(path):
    assert MASKER.path(path) is path


def test_user_information_of_an_authority():
    assert MASKER.authority("me:word@example.org:1") == f"{mark('me:word')}@example.org:1"
    assert MASKER.authority("example.org:1") == "example.org:1"


def test_command_lines():
    line = shlex.join(
        ["curl", "-H", "Authorization: Bearer abc", "-HX-Api-Key:def", "-u", "me:ghi", "--data", "password=jkl&a=1",
         "--json", '{"secret": "mno"}', "--token", "pqr", "--api-key=stu", "https://h/?token=vwx&b=2", "-v"]
    )  # fmt: skip
    masked = mask_command(line, MASKER)
    assert not re.search("abc|def|ghi|jkl|mno|pqr|stu|vwx", masked)
    arguments = shlex.split(masked)
    assert arguments[2] == f"Authorization: {mark('Bearer abc')}"
    assert arguments[7] == f"password={mark('jkl')}&a=1"
    assert arguments[-2] == f"https://h/?token={mark('vwx')}&b=2"
    for plain in ("curl -sk https://localhost:1/a?b=1", "nginx: worker process", "cut 'off", ""):
        assert mask_command(plain, MASKER) == plain


texts = st.text(st.characters(), max_size=40)
values = st.text(st.characters(exclude_characters="&;?#"), min_size=4).map(lambda value: f"S3{value}")


@given(texts, values, texts)
def test_a_field_in_any_query_is_masked(before, value, after):
    path = f"/{before}?token={value}&{after}"
    assert f"={value}&" not in MASKER.path(path)


@given(texts)
def test_nothing_raises(text):
    MASKER.path(text)
    MASKER.authority(text)
    mask_command(text, MASKER)
    raw = text.encode("utf-8", "surrogatepass")
    MASKER.url(raw)
    MASKER.form_field(raw)
