"""The curl command of an exchange, run by real shells and a curl that only says what it was given."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffctl.parts import Body
from spliffctl.top.curl import command
from spliffd.pb import spliff_pb2 as pb


def body(data: bytes) -> Body:
    return Body(((0, data),)) if data else Body()


@pytest.fixture(scope="session")
def given_to_curl(tmp_path_factory):
    """What curl's arguments and standard input are when a shell runs the command."""
    folder = tmp_path_factory.mktemp("bin")
    fake = folder / "curl"
    fake.write_text(
        f"#!{sys.executable} -IS\n"
        "import json, os, sys\n"
        "data = sys.stdin.buffer.read() if '@-' in sys.argv else b''\n"
        "print(json.dumps([[os.fsencode(a).hex() for a in sys.argv[1:]], data.hex()]))\n"
    )
    fake.chmod(0o755)

    def run(text: str, shell: str = "sh") -> tuple[list[bytes], bytes]:
        done = subprocess.run(
            [shell, "-c", text], env={"PATH": f"{folder}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.stderr == ""
        words, data = json.loads(done.stdout)
        return [bytes.fromhex(word) for word in words], bytes.fromhex(data)

    return run


def test_a_plain_get(build):
    assert command(build.exchange(), Body()) == "curl \\\n  https://api.example.com/users\n"


def test_a_post_with_headers(build, given_to_curl):
    exchange = build.exchange(request__method="POST", request__body_size=14)
    for name, value in (
        ("Host", "api.example.com"), ("Content-Type", "application/json"), ("X-Empty", ""),
        ("Accept-Encoding", "gzip"), ("Content-Length", "14"), ("X-Quote", "it's $HOME `id`"),
    ):  # fmt: skip
        exchange.request.headers.add(name=name, value=value)
    words, data = given_to_curl(command(exchange, body(b'{"name": "x"}\n')))
    assert data == b""
    assert words == [
        b"https://api.example.com/users", b"--header", b"Content-Type: application/json", b"--header", b"X-Empty;",
        b"--header", b"Accept-Encoding: gzip", b"--header", b"X-Quote: it's $HOME `id`", b"--compressed",
        b"--data-binary", b'{"name": "x"}\n',
    ]  # fmt: skip


def test_a_body_that_is_no_text_goes_through_a_pipe(build, given_to_curl):
    exchange = build.exchange(request__method="PUT", request__body_size=256)
    every = bytes(range(256))
    words, data = given_to_curl(command(exchange, body(every)))
    assert data == every
    assert words[:2] == [b"--request", b"PUT"]


def test_what_is_masked_or_missing_is_said(build):
    exchange = build.exchange(request__method="POST", request__body_size=1000)
    exchange.request.headers.add(name="authorization").masked.CopyFrom(pb.Masked(length=3, hash="ab"))
    text = command(exchange, body(b"half"))
    assert "# the request's body has 4 of 1000 bytes\n" in text
    assert "# masked, put your own in: authorization\n" in text
    assert "'authorization: ***(3:ab)'" in text


def test_head(build):
    assert "--head" in command(build.exchange(request__method="HEAD"), Body())


@settings(max_examples=40, deadline=None)
@given(
    value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    data=st.binary(max_size=40),
)
def test_nothing_of_the_wire_is_read_by_the_shell_or_the_terminal(build, given_to_curl, value, data):
    exchange = build.exchange(request__method="POST", request__path="/" + value, request__body_size=len(data))
    exchange.request.headers.add(name="X-Any", value="a" + value + "z")
    text = command(exchange, body(data))
    assert text.replace("\n", "").isprintable()
    for shell in ("sh", "bash"):
        words, stdin = given_to_curl(text, shell)
        assert f"X-Any: a{value}z".encode() in words
        assert not data or data in (stdin, words[-1])
