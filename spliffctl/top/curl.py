"""An exchange as a curl command that makes the same request again.

Takes an exchange and its request's body, returns shell text for sh and bash. Every word is in single quotes,
so nothing of the wire is read by the shell; what no terminal should get is written with printf's octal
escapes. Masked secrets stay masked: the command then fails to authenticate, and a comment says why. What is
not whole says so as well.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from spliffctl.export import content
from spliffctl.render import wire
from spliffctl.render.quote import quote

if TYPE_CHECKING:
    from spliffctl.parts import Body
    from spliffd.pb import spliff_pb2 as pb

BY_ITSELF = frozenset(
    (
        *("host", "content-length", "transfer-encoding", "connection", "expect"),
        *("upgrade", "http2-settings", "keep-alive", "te"),
    )
)
"""Headers that curl writes itself from what it is told, or that belong to the connection of then."""


def command(exchange: pb.Exchange, body: Body) -> str:
    """The command, on several lines, with comments before it."""
    request = exchange.request
    message = content.consistent(request, body)
    notes = [f"the request's {note}" for note in message.notes]
    masked = [header.name for header in request.headers if header.HasField("masked")]
    if masked:
        notes.append(f"masked, put your own in: {', '.join(masked)}")
    words = ["curl"]
    if request.method != ("POST" if message.body else "GET"):
        words.append("--head" if request.method == "HEAD" else f"--request {_word(request.method or 'GET')}")
    words.append(_word(wire.url(exchange)))
    for name, value in message.headers:
        if name.lower() not in BY_ITSELF and not name.startswith(":"):
            # An empty value would remove the header; curl sends it empty with a semicolon.
            words.append(f"--header {_word(f'{name}: {value}' if value else f'{name};')}")
    if any(name.lower() == "accept-encoding" for name, _ in message.headers):
        words.append("--compressed")
    source = ""
    if message.body:
        text = _text(message.body)
        if text is None:
            source = f"printf {_octal(message.body)} |\n"
            words.append("--data-binary @-")
        else:
            words.append(f"--data-binary {_word(text)}")
    comments = "".join(f"# {quote(note)}\n" for note in notes)
    return comments + source + " \\\n  ".join(words) + "\n"


def _text(data: bytes) -> str | None:
    """The body as text for a word of the shell; None for what does not fit in one or is not printable.

    A leading @ would name a file to curl.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    printable = text.replace("\n", "").isprintable()
    return text if printable and not text.startswith("@") else None


def _word(text: str) -> str:
    """One word of the shell, printable."""
    if text.replace("\n", "").isprintable():
        return shlex.quote(text)
    return f'"$(printf {_octal(text.encode("utf-8", "backslashreplace"))})"'


def _octal(data: bytes) -> str:
    """An argument of printf that gives these bytes; it must not begin like an option."""
    safe = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.,:;/?&=+<>{}[]()@"
    return "'" + "".join(chr(byte) if byte in safe else f"\\{byte:03o}" for byte in data) + "'"
