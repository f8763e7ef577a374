"""Content codings (RFC 9110 section 8.4.1) undone piece by piece, within limits that no body can exceed.

Takes the value of Content-Encoding and the pieces of a body as they come; returns decoded pieces of at most
``CHUNK`` bytes (twice that for brotli, whose library treats the limit as soft). Knows gzip (RFC 1952, members
one after the other), deflate (RFC 9110: zlib, and the raw deflate that some send), br (RFC 7932), zstd (RFC
8878, frames one after the other) and stacks of them. Stops, and says why in ``problem``, at corrupt data,
when one stage gives more than ``max_size`` bytes, or more than ``max_ratio`` times what went in (a bomb).
Never raises on any bytes, never holds more than a chunk for each stage beside the libraries' windows (zstd's
is refused above 128 MiB, br's is at most 16 MiB). Does no I/O.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final, Protocol

import brotli  # type: ignore[import-untyped]  # it has no type stubs; mypyc reads no configuration
from backports import zstd

CHUNK: Final = 64 << 10
"""Bytes handed out at a time: bounds memory, and is large enough to cost nothing."""

MAX_STAGES: Final = 4
"""Codings on top of each other; one is usual, two are met, more are an attack."""

RATIO_FROM: Final = 1 << 20
"""Below this much output the ratio is not looked at: 1 MiB harms nobody, and repetitive texts are honest."""

CORRUPT: Final = "corrupt"
BOMB: Final = "bomb"
TOO_LARGE: Final = "too large"
TRAILING: Final = "bytes behind its end"

_ALIASES: Final = {"x-gzip": "gzip", "x-deflate": "deflate", "x-br": "br", "x-zstd": "zstd"}


class _Stage(Protocol):
    def run(self, data: bytes) -> Iterator[bytes]: ...

    @property
    def complete(self) -> bool: ...


class _CorruptError(Exception):
    pass


class _TrailingError(Exception):
    pass


class _Zlib:
    """gzip and deflate: zlib tells gzip from zlib by itself (windowBits 47)."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._library: Any = zlib.decompressobj(47) if gzip else None
        self._head = b""
        self._begun = False

    @property
    def complete(self) -> bool:
        return not self._begun or (self._library is not None and bool(self._library.eof))

    def run(self, data: bytes) -> Iterator[bytes]:
        self._begun = True
        if self._library is None:
            self._head += data
            if len(self._head) < 2:
                return
            data, self._head = self._head, b""
            # RFC 1950 section 2.2: method 8 and a check sum of 31; anything else is raw deflate.
            is_zlib = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._library = zlib.decompressobj(15 if is_zlib else -15)
        while data:
            if self._library.eof:
                if not (self._gzip and data[:1] == b"\x1f"):
                    if data.strip(b"\0"):
                        raise _TrailingError
                    return  # padding
                self._library = zlib.decompressobj(47)
            yield from self._inflate(data)
            data = self._library.unused_data if self._library.eof else b""

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                out = self._library.decompress(data, CHUNK)
            except zlib.error:
                raise _CorruptError from None
            if out:
                yield out
            data = self._library.unconsumed_tail
            if self._library.eof or (not data and len(out) < CHUNK):
                return


class _Brotli:
    def __init__(self) -> None:
        self._library = brotli.Decompressor()
        self._begun = False

    @property
    def complete(self) -> bool:
        return bool(self._library.is_finished()) or not self._begun

    def run(self, data: bytes) -> Iterator[bytes]:
        self._begun = True
        while True:
            if self._library.is_finished():
                if data:
                    raise _TrailingError
                return
            try:
                out = self._library.process(data, output_buffer_limit=CHUNK)
            except brotli.error:
                raise _CorruptError from None
            if not out:
                return  # it wants more; whether it takes more does not say that it gave all it has
            yield out
            data = b""


class _Zstd:
    def __init__(self) -> None:
        self._library = zstd.ZstdDecompressor()
        self._begun = False

    @property
    def complete(self) -> bool:
        return bool(self._library.eof) or not self._begun

    def run(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._library.eof:
                self._library = zstd.ZstdDecompressor()
            self._begun = True
            piece = data
            while True:
                try:
                    out = self._library.decompress(piece, CHUNK)
                except (zstd.ZstdError, EOFError):
                    raise _CorruptError from None
                if out:
                    yield out
                piece = b""
                if self._library.eof or self._library.needs_input:
                    break
            data = self._library.unused_data if self._library.eof else b""


def codings(value: str) -> list[str]:
    """The codings of a Content-Encoding value, in the order in which they were applied; identity left out."""
    names = [name.strip().lower() for name in value.split(",")]
    return [_ALIASES.get(name, name) for name in names if name not in ("", "identity")]


def is_known(value: str) -> bool:
    """Whether every coding of the value can be undone; True for none at all."""
    names = codings(value)
    return len(names) <= MAX_STAGES and all(name in ("gzip", "deflate", "br", "zstd") for name in names)


class Decoder:
    """Undoes the codings of one body. ``value`` must be one that ``is_known``."""

    def __init__(self, value: str, *, max_size: int, max_ratio: int) -> None:
        self._stages = [_stage(name) for name in reversed(codings(value))]
        self._given = [0] * len(self._stages)
        self._taken = [0] * len(self._stages)
        self._max_size = max_size
        self._max_ratio = max_ratio
        self.size = 0
        """Decoded bytes so far."""
        self.problem = ""
        """Why it stopped; "" as long as it goes on."""

    @property
    def complete(self) -> bool:
        """Whether what came so far is a whole body."""
        return not self.problem and all(stage.complete for stage in self._stages)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decoded pieces; nothing more once there is a ``problem``. To be consumed to its end."""
        if self.problem or not data:
            return
        try:
            for out in self._run(0, data):
                self.size += len(out)
                yield out
        except _CorruptError:
            self.problem = CORRUPT
        except _TrailingError:
            self.problem = TRAILING
        except _LimitError as error:
            self.problem = str(error)

    def _run(self, number: int, data: bytes) -> Iterator[bytes]:
        if number == len(self._stages):
            yield data
            return
        self._given[number] += len(data)
        for out in self._stages[number].run(data):
            self._taken[number] += len(out)
            taken = self._taken[number]
            if taken > self._max_size:
                raise _LimitError(TOO_LARGE)
            if taken > RATIO_FROM and taken > self._max_ratio * self._given[number]:
                raise _LimitError(BOMB)
            yield from self._run(number + 1, out)


class _LimitError(Exception):
    pass


def _stage(name: str) -> _Stage:
    if name == "br":
        return _Brotli()
    if name == "zstd":
        return _Zstd()
    return _Zlib(gzip=name == "gzip")
