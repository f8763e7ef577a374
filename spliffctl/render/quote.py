r"""Makes strings that came from the wire safe to print.

Takes any text or bytes, returns text in which every character is printable: no C0 or C1 control
character, no DEL, no line or paragraph separator, no bidirectional override reaches the terminal.
They appear as ``\x1b``, ``\n``, ``\u202e``. The check for the common case is one call in C
(``str.isprintable``), because a watcher quotes some ten strings for each exchange.

Never drops a character and never guesses an encoding.
"""

from __future__ import annotations

import re

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(character: str) -> str:
    """Returns the escape of one unprintable character."""
    named = _NAMED.get(character)
    if named:
        return named
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quote(text: str) -> str:
    """Text with every unprintable character escaped; spaces stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def word(text: str) -> str:
    """Text as one field of a line: in double quotes when it holds a space or could be mistaken.

    Fields of a line are separated by spaces, so a path with a space in it could otherwise pretend to
    be an address and a process name.
    """
    if text.isprintable() and " " not in text and text[:1] != '"' and text:
        return text
    inner = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quote(inner)}"'


_NOT_ASCII_PRINTABLE = re.compile(r"[^\n\t -~]+")


def _quote_run(match: re.Match[str]) -> str:
    """Escapes what is unprintable in a run of characters that are not plain ASCII."""
    return quote(match[0])


def lines(text: str) -> list[str]:
    r"""Text of a body, line by line: CRLF and LF end a line, tabs stay, all else is quoted.

    A lone CR does not end a line: on a terminal it would overwrite one.
    """
    if not text:
        return []
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
    quoted = _NOT_ASCII_PRINTABLE.sub(_quote_run, text)
    result = quoted.split("\n")
    if result[-1] == "":
        result.pop()
    return result
