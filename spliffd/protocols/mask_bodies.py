"""Secret fields in bodies, masked as they pass: JSON, forms, multipart forms.

Takes the pieces of a body in order, of any sizes, and a ``Masker``; returns the same bytes with the values of
secret fields masked to their own length, so that every offset stays what it was. What may be the beginning of
a secret is held back until it is clear what it is (at most MAX_SECRET and a name), so no boundary of pieces,
records or parts shows half of one. After lost bytes nobody knows whether what follows is a secret's middle:
JSON and multipart are masked to their end, a form to its next field.

JSON is not parsed but searched for secret names in quotes before a colon, in JSON within JSON strings too: a
body cut, broken or of several documents is masked all the same. Values that are objects or arrays are masked
whole. Never raises.
"""

from __future__ import annotations

import re
from typing import Final

from spliffd.protocols.masking import Masker

MAX_SECRET: Final = 64 << 10
"""A value longer than this is masked without its hash: it need not be held to its end."""

_KEY: Final = re.compile(rb'"(?!\s*[,:\]}])([^"\\\r\n]{1,64})(\\{0,31})"\s{0,64}:')
"""A name and its quotes. What begins like the rest of an object follows the closing quote of something."""
_KEY_NAMES: Final = re.compile(rb'"([^"\\\r\n]{1,64})\\{0,31}"\s{0,64}:')
"""The same for the names alone: most texts have none that is secret, and this tells in half of the time."""
_ESCAPED_KEY: Final = re.compile(
    rb'"(?!\s*[,:\]}])((?:[^"\\\r\n]|\\u[0-9a-fA-F]{4}){1,64})(\\{0,31})"\s{0,64}:'
)
"""The same with letters written as \\u0041, which is rare: only where \\u00 is in the text at all."""
_KEY_BEGINS: Final = re.compile(rb'"[^"\r\n]{0,440}(?:"\s{0,64})?\Z')
"""No line ends inside a name (RFC 8259 section 7), so what ends with one is clear: events, lines of JSON."""
_KEY_SPAN: Final = 512
_ESCAPE: Final = re.compile(rb"\\u00([0-9a-fA-F]{2})")
_TOKEN: Final = re.compile(rb'(\\*)"|[\[\]{},\s]')
_LITERALS: Final = (b"null", b"true", b"false")

_OPEN, _STRING, _CONTAINER, _SCALAR = range(4)
"""Kinds of a secret value; _OPEN: nothing of it has come yet."""


class BodyMask:
    """What the masks of all forms have in common."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._held = b""

    def feed(self, data: bytes, last: bool) -> bytes:
        """Masked bytes that are clear now; with ``last`` all that are left."""
        raise NotImplementedError

    def gap(self) -> bytes:
        """Bytes are lost here: what was held back, all masked."""
        held, self._held = self._held, b""
        return b"*" * len(held)


class JsonMask(BodyMask):
    """Masks the values of secret keys."""

    def __init__(self, masker: Masker) -> None:
        BodyMask.__init__(self, masker)
        self._blind = False
        self._inside = False
        self._begin_value(0)

    def _begin_value(self, level: int) -> None:
        self._level = level
        """Backslashes before each quote: 0, in a JSON string 1, in a string within that 3."""
        self._kind = _OPEN
        self._quoted = False
        self._depth = 0
        self._scan = 0
        """Bytes of what is held that were looked at."""
        self._flood = False

    def gap(self) -> bytes:
        """Whether a secret follows cannot be told any more."""
        self._blind = True
        return BodyMask.gap(self)

    def feed(self, data: bytes, last: bool) -> bytes:
        """See BodyMask."""
        if self._blind:
            return b"*" * len(data)
        buffer = self._held + data if self._held else data
        out: list[bytes] = []
        at = 0
        searched = self._may_hold_key(buffer)
        while at < len(buffer):
            if not self._inside:
                found = self._find_key(buffer, at) if searched else None
                if found is None:
                    end = len(buffer) if last else self._clear_until(buffer, at)
                    out.append(buffer[at:end])
                    at = end
                    break
                out.append(buffer[at : found.end()])
                at = found.end()
                self._inside = True
                self._begin_value(len(found[2]))
                continue
            end = self._value_end(buffer, at)
            if end < 0 and last:
                end = len(buffer)
            if end < 0:
                if self._scan > MAX_SECRET:
                    out.append(self._stars(buffer[at : at + self._scan]))
                    at += self._scan
                    self._scan = 0
                    self._flood = True
                break
            out.append(self._mask(buffer[at:end]))
            at = end
            self._inside = False
        self._held = buffer[at:]
        return b"".join(out)

    def _may_hold_key(self, buffer: bytes) -> bool:
        """Whether there is any secret key to be found."""
        if b"\\u00" in buffer:
            return True
        is_field = self._masker.is_field
        return any(is_field(name) for name in set(_KEY_NAMES.findall(buffer)))

    def _find_key(self, buffer: bytes, at: int) -> re.Match[bytes] | None:
        is_field = self._masker.is_field
        if b"\\u00" in buffer:
            for found in _ESCAPED_KEY.finditer(buffer, at):
                if is_field(_ESCAPE.sub(_unescaped, found[1])):
                    return found
            return None
        for found in _KEY.finditer(buffer, at):
            if is_field(found[1]):
                return found
        return None

    def _clear_until(self, buffer: bytes, at: int) -> int:
        begins = _KEY_BEGINS.search(buffer, max(at, len(buffer) - _KEY_SPAN))
        return len(buffer) if begins is None else begins.start()

    def _value_end(self, buffer: bytes, at: int) -> int:
        """Where the value that starts at ``at`` ends; -1 when that has not come yet."""
        period = 2 * (self._level + 1)
        if self._kind == _OPEN:
            start = len(buffer) - len(buffer[at + self._scan :].lstrip())
            self._scan = start - at
            first = buffer[start : start + 1]
            if not first:
                return -1
            if first in (b'"', b"\\"):
                rest = buffer[start:].lstrip(b"\\")[:1]
                if not rest:
                    return -1
                self._kind = _STRING if rest == b'"' else _SCALAR
            else:
                self._kind = _CONTAINER if first in (b"{", b"[") else _SCALAR
        for token in _TOKEN.finditer(buffer, at + self._scan):
            sign = buffer[token.end() - 1]
            if sign == 0x22:  # a quote
                run = len(token[1])
                if not self._quoted:
                    if self._kind == _SCALAR:
                        return token.start()
                    self._quoted = True
                elif run < self._level:  # the string around it ends
                    return token.start()
                elif (run - self._level) % period == 0:
                    self._quoted = False
                    if self._kind == _STRING:
                        return token.end()
            elif self._quoted:
                continue
            elif sign in b"{[":
                self._depth += 1
            elif sign in b"]}":
                if self._depth == 0:
                    return token.start()
                self._depth -= 1
                if self._depth == 0:
                    return token.end()
            elif self._kind == _SCALAR:
                return token.start()
        tail = len(buffer)
        while tail > at and buffer[tail - 1] == 0x5C:  # backslashes belong to a quote that may follow
            tail -= 1
        self._scan = tail - at
        return -1

    def _mask(self, value: bytes) -> bytes:
        body = value.lstrip()
        blank = value[: len(value) - len(body)]
        quote = b"\\" * self._level + b'"'
        if self._flood:
            closes = self._kind == _STRING and not self._quoted
            return self._stars(value[: -len(quote)]) + quote if closes else self._stars(value)
        if self._kind == _STRING:
            opening = len(body) - len(body.lstrip(b"\\")) + 1
            closing = 0 if self._quoted else len(quote)
            secret = body[opening : len(body) - closing]
            return blank + body[:opening] + self._masker.fit(secret) + body[len(body) - closing :]
        if self._kind == _SCALAR and body in _LITERALS:
            return value
        inner = len(body) - 2 * len(quote)
        if inner < 1:  # no room for quotes; an empty object or array says nothing
            return value if self._kind == _CONTAINER and len(body) <= 2 else blank + b"*" * len(body)
        return blank + quote + self._masker.fit(body, inner) + quote

    def _stars(self, value: bytes) -> bytes:
        """Part of a long value; of a string, its opening quote stays."""
        if self._kind == _STRING and not self._flood:
            opening = value[: value.find(b'"') + 1]
            return opening + b"*" * (len(value) - len(opening))
        return b"*" * len(value)


class FormMask(BodyMask):
    """Masks fields of application/x-www-form-urlencoded (WHATWG URL, section 5)."""

    def __init__(self, masker: Masker) -> None:
        BodyMask.__init__(self, masker)
        self._skip = b""
        """How bytes are shown up to the next "&": "*" masked, "-" as they are, "" by name."""

    def gap(self) -> bytes:
        """Up to the next field all is masked."""
        self._skip = b"*"
        return BodyMask.gap(self)

    def feed(self, data: bytes, last: bool) -> bytes:
        """See BodyMask."""
        out: list[bytes] = []
        if self._skip:
            end = data.find(b"&")
            end = len(data) if end < 0 else end
            out.append(b"*" * end if self._skip == b"*" else data[:end])
            if end == len(data):
                return out[0]
            data = data[end:]
            self._skip = b""
        buffer = self._held + data if self._held else data
        end = len(buffer) if last else buffer.rfind(b"&") + 1
        mask = self._masker.form_field
        out.append(b"&".join([mask(field) for field in buffer[:end].split(b"&")]))
        self._held = held = buffer[end:]
        if len(held) > MAX_SECRET:
            name, equals, value = held.partition(b"=")
            secret = bool(equals) and self._masker.is_field(name)
            self._skip = b"*" if secret else b"-"
            out.append(name + equals + b"*" * len(value) if secret else held)
            self._held = b""
        return b"".join(out)


class MultipartMask(BodyMask):
    """Masks parts of multipart/form-data (RFC 7578) whose name is that of a secret field."""

    _NAME = re.compile(rb'[;\s]name="?([^"=;\r\n]{1,64})(?=[";\r\n])')
    _SPAN = 80
    """Longest match of it."""

    def __init__(self, masker: Masker) -> None:
        BodyMask.__init__(self, masker)
        self._blind = False
        self._state = 0
        """0 outside, 1 in the header of a secret part, 2 in its value, 3 in one longer than MAX_SECRET."""
        self._scan = 0

    def gap(self) -> bytes:
        """Whether a secret follows cannot be told any more."""
        self._blind = True
        return BodyMask.gap(self)

    def feed(self, data: bytes, last: bool) -> bytes:
        """See BodyMask."""
        if self._blind:
            return b"*" * len(data)
        buffer = self._held + data if self._held else data
        out: list[bytes] = []
        at = 0
        while at < len(buffer):
            if self._state == 0:
                end = self._secret_name(buffer, at)
                if end < 0:
                    end = len(buffer) if last else max(at, len(buffer) - self._SPAN)
                    out.append(buffer[at:end])
                    at = end
                    break
                out.append(buffer[at:end])
                self._state = 1
            elif self._state == 1:
                end = buffer.find(b"\r\n\r\n", at)
                if end < 0:
                    end = len(buffer) if last else max(at, len(buffer) - 3)
                    out.append(buffer[at:end])
                    at = end
                    break
                end += 4
                out.append(buffer[at:end])
                self._state, self._scan = 2, 0
            else:
                end = buffer.find(b"\r\n--", at + self._scan)
                if end < 0:
                    end = len(buffer) if last else max(at, len(buffer) - 3)
                    self._scan = end - at
                    if last or self._scan > MAX_SECRET or self._state == 3:
                        whole = last and self._state == 2
                        out.append(self._masker.fit(buffer[at:end]) if whole else b"*" * (end - at))
                        at, self._scan, self._state = end, 0, 3
                    break
                value = buffer[at:end]
                out.append(self._masker.fit(value) if self._state == 2 else b"*" * len(value))
                self._state = 0
            at = end
        self._held = buffer[at:]
        return b"".join(out)

    def _secret_name(self, buffer: bytes, at: int) -> int:
        for found in self._NAME.finditer(buffer, at):
            if self._masker.is_field(found[1]):
                return found.end()
        return -1


def body_mask(content_type: str, first: bytes, masker: Masker) -> BodyMask | None:
    """The mask for a body of this Content-Type that begins with ``first``; None where nothing is masked."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return FormMask(masker)
    if kind.startswith("multipart/"):
        return MultipartMask(masker)
    if "json" in kind or kind == "text/event-stream":
        return JsonMask(masker)
    if kind in ("", "text/plain") and first.lstrip()[:1] in (b"{", b"["):
        return JsonMask(masker)
    return None


def _unescaped(found: re.Match[bytes]) -> bytes:
    return bytes((int(found[1], 16),))
