"""Secrets and what stands in their place: which names make a value a secret, and the mask of a value.

Takes a key that lasts for one run of the daemon and the configured names; answers for header names, and
returns texts (paths, URLs, forms) with the values of secret fields masked. A mask shows the length and a
keyed hash (BLAKE2b, RFC 7693, 32 bits): equal secrets compare equal, and nobody without the key can try
guesses.

In text of no fixed length a mask is ``***(12:ab34cd56)``; ``fit`` makes one as long as the secret, for
bodies, whose offsets must stay. A field's name counts whatever its case and whether its words are joined by
"_", "-" or nothing (``access_token`` is also ``accessToken``), percent-encoded or not, and inside brackets
(``user[password]``). When in doubt, more is masked. Does no I/O, never raises, keeps no secret.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final
from urllib.parse import unquote_to_bytes

from spliffd.protocols.hpack import UNKNOWN

PLAIN: Final = 0
SECRET: Final = 1
URL: Final = 2
"""What a header's value is: anything, a secret, or text that may hold a URL with secret fields in it."""

URL_HEADERS: Final = frozenset(
    b"location content-location referer link refresh destination x-original-url x-rewrite-url"
    b" x-original-uri x-forwarded-uri :path".split()
)

HASH_BYTES: Final = 4
"""Enough to tell a few thousand secrets apart, and no more than that of a secret leaves the worker."""

MAX_NAMES: Final = 1024
"""Header names remembered with their kind; a host meets some hundreds."""

MAX_NAME: Final = 64
"""Longest of them; the same goes for names of fields."""

MAX_QUERIES: Final = 512
MAX_QUERY: Final = 128
"""Queries without secrets that are remembered, and the longest of them: less than 100 KiB."""

_BEGIN: Final = re.compile(rb"[?;#]")
_FIELD: Final = re.compile(rb"([^&;?#=]*)=([^&;?#]*)")
"""A field of a query or fragment. "?" separates as well: a URL may stand unencoded in another one's query."""
_NAMES: Final = re.compile(r"[?&;#]([^&;?#=]*)=")
_NAME_PART: Final = re.compile(rb"[^\[\].]+")
_WORD: Final = re.compile(rb"([A-Za-z0-9_.-]+)[\]\"'\\]*\s*[=:]")
"""What may be a field's name in any text: a word before "=" or ":", in quotes or not."""
_USER: Final = re.compile(rb"^([A-Za-z][A-Za-z0-9+.-]*://)?([^/?#@\s]+)@")


def bare(name: bytes) -> bytes:
    """A name without case, "_" and "-"."""
    return name.lower().replace(b"_", b"").replace(b"-", b"")


class Masker:
    """Masks by one key and one list of names. ``headers`` and ``fields`` are names in any case."""

    def __init__(self, key: bytes, headers: Sequence[str], fields: Sequence[str]) -> None:
        self._key = key
        self._fields = frozenset([bare(name.encode()) for name in fields])
        self._headers = frozenset([name.strip().lower().encode() for name in headers])
        self._kinds: dict[bytes, int] = {}
        self._known: dict[bytes, bool] = {}
        self._known_text: dict[str, bool] = {}
        self._plain_queries: set[str] = set()
        """Queries without secrets, which mostly come again."""

    def digest(self, secret: bytes) -> str:
        """The keyed hash as 8 hexadecimal digits."""
        return blake2b(secret, digest_size=HASH_BYTES, key=self._key).hexdigest()

    def mark(self, secret: bytes) -> bytes:
        """``***(12:ab34cd56)``; nothing for nothing."""
        return b"***(%d:%s)" % (len(secret), self.digest(secret).encode()) if secret else b""

    def fit(self, secret: bytes, size: int = -1) -> bytes:
        """A mask as long as the secret (or ``size``): "*", as much of the hash as fits, "*" to the end."""
        if size < 0:
            size = len(secret)
        return (b"*" + self.digest(secret).encode()[: size - 1]).ljust(size, b"*") if size else b""

    def kind(self, name: bytes) -> int:
        """PLAIN, SECRET or URL for a header's name. What HPACK could not name may be any header: a secret."""
        kind = self._kinds.get(name, -1)
        if kind >= 0:
            return kind
        lower = name.strip().lower()
        if lower in self._headers or lower == UNKNOWN:
            kind = SECRET
        else:
            kind = URL if lower in URL_HEADERS else PLAIN
        if len(name) <= MAX_NAME:
            if len(self._kinds) >= MAX_NAMES:
                self._kinds.clear()
            self._kinds[name] = kind
        return kind

    def is_field(self, name: bytes) -> bool:
        """Whether a field of this name (or of which a bracketed part has it) holds a secret."""
        known = self._known.get(name)
        if known is not None:
            return known
        plain = name
        if b"%" in name or b"+" in name:
            plain = unquote_to_bytes(name.replace(b"+", b" "))
        secret = False
        for part in _NAME_PART.findall(plain):
            if bare(part.strip()) in self._fields:
                secret = True
        if len(name) <= MAX_NAME:
            if len(self._known) >= MAX_NAMES:
                self._known.clear()
            self._known[name] = secret
        return secret

    def _is_text_field(self, name: str) -> bool:
        """The same for a name as text, without the cost of encoding it each time."""
        secret = self.is_field(name.encode("utf-8", "surrogatepass"))
        if len(name) <= MAX_NAME:
            if len(self._known_text) >= MAX_NAMES:
                self._known_text.clear()
            self._known_text[name] = secret
        return secret

    def path(self, path: str) -> str:
        """A request's target with the values of secret fields masked; the same object when there are none."""
        begin = path.find("?")
        plain = begin < 0 or path[begin:] in self._plain_queries
        if plain and ";" not in path and "#" not in path and "@" not in path:
            return path
        masked = self._mask_path(path)
        if masked is path and begin >= 0 and len(path) - begin <= MAX_QUERY:
            if len(self._plain_queries) >= MAX_QUERIES:
                self._plain_queries.clear()
            self._plain_queries.add(path[begin:])
        return masked

    def _mask_path(self, path: str) -> str:
        if "%" not in path and "@" not in path:
            known = self._known_text
            for name in _NAMES.findall(path):
                secret = known.get(name)
                if self._is_text_field(name) if secret is None else secret:
                    break
            else:
                return path
        raw = path.encode("utf-8", "surrogatepass")
        masked = self.url(raw)
        return path if masked is raw else masked.decode("utf-8", "surrogatepass")

    def authority(self, authority: str) -> str:
        """Host and port without user information (RFC 3986, 3.2.1), which may hold a password."""
        if "@" not in authority:
            return authority
        user, _, host = authority.rpartition("@")
        return f"{self.mark(user.encode('utf-8', 'surrogatepass')).decode()}@{host}"

    def url(self, text: bytes) -> bytes:
        """A URL, or text with one in it: user information and secret fields of query and fragment masked."""
        if b"@" in text:
            user = _USER.match(text)
            if user is not None and b":" in user[2]:
                text = text[: user.start(2)] + self.mark(user[2]) + text[user.end(2) :]
        begin = _BEGIN.search(text)
        if begin is None:
            return text
        head, query = text[: begin.end()], text[begin.end() :]
        masked = _FIELD.sub(self._mark_field, query)
        return text if masked == query else head + masked

    def form_field(self, field: bytes) -> bytes:
        """One ``name=value`` of a form, masked to its own length when it is a secret."""
        name, equals, value = field.partition(b"=")
        if value and (self.is_field(name) or self._nested(value)):
            return name + equals + self.fit(value)
        return field

    def suspects(self, text: bytes) -> bool:
        """Whether ``text``, whatever its form, may hold a secret field, percent-encoded or not."""
        plain = unquote_to_bytes(text) if b"%" in text else text
        return any(self.is_field(word) for word in _WORD.findall(plain))

    def _mark_field(self, field: re.Match[bytes]) -> bytes:
        name, value = field[1], field[2]
        if value and (self.is_field(name) or self._nested(value)):
            return name + b"=" + self.mark(value)
        return field[0]

    def _nested(self, value: bytes) -> bool:
        """Whether a value is a percent-encoded URL, form or JSON that holds a secret itself."""
        return b"%" in value and self.suspects(unquote_to_bytes(value))
