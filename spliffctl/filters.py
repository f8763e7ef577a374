"""Options of ``watch`` as a ``Filter`` of the contract.

Takes what the operator typed, checks what can be checked without the daemon, returns the message. Each
kind of option is a click parameter type with a clear message for what cannot be meant, and with completion
where the values are known. Filters are evaluated in the daemon; nothing here looks at an exchange.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from spliffd.pb import spliff_pb2 as pb

    ParamType = click.ParamType[Any]
else:
    # Generic since click 8.5 only, and click 8.2 is enough.
    ParamType = click.ParamType

RAW_PROTOCOLS = (
    *("redis", "postgresql", "mysql", "mqtt", "kafka", "smtp", "imap", "pop3", "dns", "ldap", "amqp", "ftp"),
    *("xmpp", "irc", "mongodb", "ssh", "tls"),
)
"""What the daemon names among what it does not take apart."""

PROTOCOLS = {
    "http1": "http1",
    "http/1.1": "http1",
    "h1": "http1",
    "http2": "http2",
    "h2": "http2",
    "grpc": "grpc",
    "websocket": "websocket",
    "ws": "websocket",
    "raw": "raw",
    **{name: name for name in RAW_PROTOCOLS},
    "postgres": "postgresql",
}
"""Names people use for protocols, and those of the contract."""

LIBRARIES = ("openssl", "boringssl", "libressl", "gnutls", "nss", "wolfssl", "mbedtls", "go", "rustls")

MAX_PID = 1 << 22
"""PID_MAX_LIMIT of 64-bit Linux."""

MIN_CONTAINER_PREFIX = 6
"""Shorter prefixes match by accident; the daemon refuses them too."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS = re.compile(r"(\d{3})(?:-(\d{3}))?")
_STATUS_CLASS = re.compile(r"([1-9])[xX]{2}")


class Checked(ParamType):
    """A parameter whose text is checked, with the name that --help shows."""

    completions: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The name of the value in --help."""
        del param, ctx
        return self.name

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The known values that begin like this."""
        del ctx, param
        return [CompletionItem(value) for value in self.completions if value.startswith(incomplete)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The checked value; a problem becomes a usage error that names the option."""
        if not isinstance(value, str):
            return value
        try:
            return self.check(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def check(self, text: str) -> Any:
        """The value, or ValueError with a sentence. Text must say something and hold no NUL."""
        if not text or "\0" in text:
            raise ValueError("it is empty: leave the option away to match everything")
        return text


class Glob(Checked):
    """A pattern with ``*``, ``?`` and ``[…]``."""


class Number(Checked):
    """A whole number between ``first`` and ``last``."""

    def __init__(self, name: str, first: int, last: int) -> None:
        super().__init__(name)
        self.first, self.last = first, last

    def check(self, text: str) -> int:
        """The number."""
        if not text.isascii() or not text.isdigit() or not self.first <= int(text[:20]) <= self.last:
            raise ValueError(f"{text!r} is not a number from {self.first} to {self.last}")
        return int(text)


class Host(Checked):
    """A glob on the host, without scheme and port."""

    def check(self, text: str) -> str:
        """The glob."""
        super().check(text)
        if "/" in text:
            raise ValueError(f"{text!r} is more than a host: write only the name, and the rest as --path")
        name, _, port = text.rpartition(":")
        if port.isdigit() and name and ":" not in name:
            raise ValueError(f"a host has no port here: write --host {name} --port {port}")
        return text


class Path(Checked):
    """A glob on the request path, query included."""

    def check(self, text: str) -> str:
        """The glob."""
        super().check(text)
        if text[0] not in "/*?[" and "://" not in text:
            raise ValueError(f"paths begin with a slash: write '/{text}' or '*{text}*'")
        return text


class Method(Checked):
    """A request method."""

    completions = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")

    def check(self, text: str) -> str:
        """The method in capitals."""
        if not _TOKEN.fullmatch(text):
            raise ValueError(f"{text!r} is not a request method such as GET")
        return text.upper()


class Status(Checked):
    """``404``, ``2xx`` or ``400-499``."""

    completions = ("1xx", "2xx", "3xx", "4xx", "5xx")

    def check(self, text: str) -> tuple[int, int]:
        """First and last status of the range."""
        of_class = _STATUS_CLASS.fullmatch(text)
        if of_class:
            first = int(of_class[1]) * 100
            return first, first + 99
        match = _STATUS.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is not a status: write 404, 2xx or 400-499")
        first, last = int(match[1]), int(match[2] or match[1])
        if first < 100:
            raise ValueError(f"{text!r}: statuses begin at 100")
        if first > last:
            raise ValueError(f"{text!r} is empty: write {last}-{first}")
        return first, last


class Protocol(Checked):
    """The name of a protocol."""

    completions = ("http1", "http2", "grpc", "websocket", "raw", *RAW_PROTOCOLS)

    def check(self, text: str) -> str:
        """The name that the contract uses."""
        name = PROTOCOLS.get(text.lower())
        if name is None:
            raise ValueError(f"{text!r} is not one of {', '.join(self.completions)}")
        return name


class Library(Checked):
    """The name of a TLS library."""

    completions = LIBRARIES

    def check(self, text: str) -> str:
        """The name that the contract uses."""
        name = text.lower()
        if name not in LIBRARIES:
            raise ValueError(f"{text!r} is not one of {', '.join(LIBRARIES)}")
        return name


class Container(Checked):
    """A container id or its beginning."""

    def check(self, text: str) -> str:
        """The id in small letters."""
        if not re.fullmatch(r"[0-9a-fA-F]+", text):
            raise ValueError(f"{text!r} is not a container id (hexadecimal): names are not known to spliffd")
        if len(text) < MIN_CONTAINER_PREFIX:
            raise ValueError(f"{text!r} is too short: give at least {MIN_CONTAINER_PREFIX} digits of the id")
        return text.lower()


PID = Number("PID", 1, MAX_PID)
PORT = Number("PORT", 1, 65535)

OPTIONS: tuple[tuple[str, str, Checked, str], ...] = (
    ("--pid", "pids", PID, "Process id."),
    ("--ppid", "ppids", PID, "Parent's process id: its descendants."),
    ("--comm", "comms", Glob("GLOB"), "Command name, as in /proc/PID/comm."),
    ("--exe", "exes", Glob("GLOB"), "Path of the executable."),
    ("--user", "users", Checked("USER"), "User name or id."),
    ("--unit", "units", Glob("GLOB"), "systemd unit, such as nginx.service."),
    ("--container", "containers", Container("ID"), "Container id, or at least 6 digits of it."),
    ("--host", "hosts", Host("GLOB"), "Host asked for, SNI or remote address."),
    ("--path", "paths", Path("GLOB"), "Request path, query included."),
    ("--method", "methods", Method("METHOD"), "Request method."),
    ("--status", "statuses", Status("STATUS"), "Response status: 404, 2xx, 400-499."),
    (
        "--protocol",
        "protocols",
        Protocol("NAME"),
        "http1, http2, grpc, websocket, raw, or what raw bytes are: redis, ...",
    ),
    ("--library", "libraries", Library("NAME"), "TLS library: openssl, gnutls, nss, go, ..."),
    ("--port", "ports", PORT, "Port, local or remote."),
)
"""Option, field of ``Filter``, type, help; each may be given several times."""


_COLUMN = re.compile(r"filter\.expression, column (\d+)")


def pointed_at(message: str, expression: str | None) -> str:
    """What the daemon says of an expression, with the expression and a mark below its column."""
    match = _COLUMN.search(message)
    if match is None or not expression or not expression.isprintable():
        return message
    return f"{message}\n  {expression}\n  {' ' * (int(match[1]) - 1)}^"


def build(values: dict[str, Any], parents: Sequence[int] = ()) -> pb.Filter:
    """The ``Filter`` of options by field name; ``parents``: pids whose descendants to watch as well.

    A command is watched by the pid of its parent, which is this client, and by its own: the first stands
    for the command, the second for its children. Its own pid in ``pids`` would be a condition of
    another kind, so that the children would no longer match.
    """
    from spliffd.pb import spliff_pb2

    selected: dict[str, Any] = {field: list(values.get(field) or ()) for _, field, _, _ in OPTIONS}
    statuses = [spliff_pb2.StatusRange(first=first, last=last) for first, last in selected.pop("statuses")]
    result = spliff_pb2.Filter(**selected, statuses=statuses, expression=values.get("expression") or "")
    result.ppids.extend(parents)
    return result
