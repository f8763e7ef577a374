"""Secrets on a command line: ``curl -H 'Authorization: …' -u me:word``.

Takes the text that /proc gave (arguments quoted as a shell would) and a ``Masker``; returns it with the
secrets masked. Knows headers, options named like secret fields, user information, fields in URLs and forms.
Short options other than curl's -u say nothing about their values, so those stay.
"""

from __future__ import annotations

import shlex

from spliffd.protocols.masking import SECRET, Masker

_CREDENTIALS = frozenset(("-u", "--user", "--proxy-user", "-U", "--http-password", "--proxy-password"))
"""Options of curl and wget whose next argument is a user with a password."""


def mask_command(line: str, masker: Masker) -> str:
    """``line`` with secrets masked; the same text when there are none."""
    try:
        arguments = shlex.split(line)
    except ValueError:  # cut off inside a quoted argument: what follows the first secret cannot be told
        arguments = line.split(" ")
    masked = [
        _argument(masker, before, one) for before, one in zip(["", *arguments], arguments, strict=False)
    ]
    return line if masked == arguments else shlex.join(masked)


def _argument(masker: Masker, before: str, argument: str) -> str:
    if before in _CREDENTIALS and ":" in argument:
        return _mark(masker, argument)
    if before.startswith("-") and masker.is_field(before.lstrip("-").encode()) and argument[:1] != "-":
        return _mark(masker, argument)
    if argument.startswith("-u") and ":" in argument:
        return "-u" + _mark(masker, argument[2:])
    name, colon, value = argument.partition(":")
    bare = name.removeprefix("-H").strip().encode("utf-8", "surrogatepass")
    if colon and masker.kind(bare) == SECRET:
        return f"{name}: {_mark(masker, value.strip())}"
    raw = argument.encode("utf-8", "surrogatepass")
    if argument[:1] == "-":
        name, equals, value = argument.partition("=")
        if equals and masker.is_field(name.lstrip("-").encode("utf-8", "surrogatepass")):
            return f"{name}={_mark(masker, value)}"
    elif "=" in argument and masker.suspects(raw):
        # A form or a URL: a form is masked as the query of one.
        masked = masker.url(raw) if b"?" in raw else masker.url(b"?" + raw)[1:]
        return masked.decode("utf-8", "surrogatepass")
    if '"' in argument and masker.suspects(raw):
        return _mark(masker, argument)  # JSON as an argument: nobody reads a command line for that
    return masker.path(argument)


def _mark(masker: Masker, secret: str) -> str:
    return masker.mark(secret.encode("utf-8", "surrogatepass")).decode()
