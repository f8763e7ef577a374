"""Hand-made ELF files: a tiny assembler, a tiny linker, and the shapes that compilers give to OpenSSL.

``library(functions)`` is a whole shared library as bytes. A function is a list of pieces: bytes are
instructions, ``(opcode, "name")`` is an instruction with a 32-bit displacement to a label or function,
``":label"`` marks a place.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spliffd.targets.discovery import known_library_files

Piece = bytes | str | tuple[bytes, str]
Functions = dict[str, list[Piece]]

EXPORTED = ("ERR_", "SSL_", "gnutls_", "PR_", "wolfSSL_", "mbedtls_")
"""How names of functions begin that get a symbol."""

TEXT = 0x200
"""Where code begins, in the file and in memory."""
CALL, JMP, JS, JLE, JG = b"\xe8", b"\xe9", b"\x0f\x88", b"\x0f\x8e", b"\x0f\x8f"
SUB_RSP = b"\x48\x83\xec"
ADD_RSP = b"\x48\x83\xc4"
TEST_EDX, TEST_EAX = b"\x85\xd2", b"\x85\xc0"
EXTEND = b"\x48\x63\xd2"  # movsxd rdx, edx
RCX_SLOT = b"\x48\x89\xe1"  # mov rcx, rsp
LOAD_SLOT = b"\x8b\x04\x24"  # mov eax, [rsp]
RET = b"\xc3"
ENDBR64 = b"\xf3\x0f\x1e\xfa"


def plain(internal: str, between: list[Piece] | None = None, **change: bytes) -> list[Piece]:
    """SSL_read and SSL_write as Debian's gcc makes them; ``between`` is put right before the call."""
    return [
        SUB_RSP + b"\x18",
        TEST_EDX,
        (JS, "bad"),
        change.get("rcx", RCX_SLOT),
        change.get("extend", EXTEND),
        *(between or []),
        (CALL, internal),
        TEST_EAX,
        (JLE, "done"),
        change.get("load", LOAD_SLOT),
        ":done",
        ADD_RSP + b"\x18" + RET,
        ":bad",
        (CALL, "ERR_new@plt"),
        b"\x83\xc8\xff",  # or eax, -1
        (JMP, "done"),
    ]


def extended(
    internal: str, before: bytes = b"", after: bytes = b"\x31\xd2\x85\xc0\x0f\x48\xc2"
) -> list[Piece]:
    """SSL_read_ex and SSL_write_ex: pass on, clamp (xor edx, edx; test; cmovs), return."""
    return [SUB_RSP + b"\x08", before, (CALL, internal), after, ADD_RSP + b"\x08" + RET]


def openssl(**change: list[Piece]) -> Functions:
    """All functions of a small OpenSSL; names without "SSL_" are internal and get no symbol."""
    body: list[Piece] = [b"\x53\x48\x89\xfb\x31\xc0\x5b\xc3"]  # push rbx; mov rbx, rdi; ...; ret
    trivial: list[Piece] = [b"\x31\xc0\xc3"]
    functions: Functions = {
        "ERR_new@plt": [b"\xff\x25\x00\x00\x00\x00"],
        "read_internal": body,
        "peek_internal": body,
        "write_internal": body,
        "SSL_read": plain("read_internal"),
        "SSL_read_ex": extended("read_internal"),
        "SSL_peek": plain("peek_internal"),
        "SSL_peek_ex": extended("peek_internal"),
        "SSL_write": plain("write_internal"),
        "SSL_write_ex": extended("write_internal"),
    }
    names = ("do_handshake", "connect", "accept", "set_fd", "free", "clear", "new", "waiting_for_async")
    functions |= {f"SSL_{name}": trivial for name in names}
    return functions | change


def library(
    functions: Functions, machine: int = 62, sized: bool = True, table: int = 11, text: bytes = b""
) -> tuple[bytes, dict[str, int]]:
    """A shared library with ``functions``, and where each of them begins (file offset = address).

    ``table``: 11 for a dynamic symbol table, 2 for a full one only. ``text``: read-only data.
    """
    code, places = _assemble(functions)
    plt = sum(_size(pieces) for name, pieces in functions.items() if name.endswith("@plt"))
    names = [name for name in functions if name.startswith(EXPORTED)]
    strings, rows = b"\0", struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    for name in names:
        size = _size(functions[name]) if sized else 0
        rows += struct.pack("<IBBHQQ", len(strings), 0x12, 0, 2, places[name], size)
        strings += name.encode() + b"\0"
    section_names = b"\0.plt\0.text\0.symbols\0.strings\0"
    parts = [code, rows, strings, section_names, text]
    offsets = []
    image = b"\0" * TEXT
    for part in parts:
        image += b"\0" * (-len(image) % 16)
        offsets.append(len(image))
        image += part
    headers = len(image) + (-len(image) % 16)
    image += b"\0" * (headers - len(image))
    section = struct.Struct("<IIQQQQIIQQ").pack
    image += section(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    image += section(1, 1, 6, TEXT, TEXT, plt, 0, 0, 1, 0)
    image += section(6, 1, 6, TEXT + plt, TEXT + plt, len(code) - plt, 0, 0, 1, 0)
    image += section(12, table, 2, 0, offsets[1], len(rows), 4, 1, 8, 24)
    image += section(21, 3, 2, 0, offsets[2], len(strings), 0, 0, 1, 0)
    image += section(1, 3, 0, 0, offsets[3], len(section_names), 0, 0, 1, 0)
    segment = struct.Struct("<IIQQQQQQ").pack
    loads = segment(1, 5, TEXT, TEXT, TEXT, len(code), len(code), 4096)
    loads += segment(1, 4, offsets[4], 0x100000, 0x100000, len(text), len(text), 4096)
    identity = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 3, machine, 1, 0, 64, headers, 0, 64, 56, 2, 64, 6, 5)
    return header + loads + image[len(header) + len(loads) :], places


def _size(pieces: list[Piece]) -> int:
    return sum(0 if isinstance(p, str) else len(p) if isinstance(p, bytes) else len(p[0]) + 4 for p in pieces)


def _assemble(functions: Functions) -> tuple[bytes, dict[str, int]]:
    places, at = {}, TEXT
    for name, pieces in functions.items():
        places[name] = at
        for number, piece in enumerate(pieces):
            if isinstance(piece, str):
                places[name + piece] = at
            at += _size(pieces[number : number + 1])
    code = b""
    for name, pieces in functions.items():
        for piece in pieces:
            if isinstance(piece, bytes):
                code += piece
            elif isinstance(piece, tuple):
                opcode, target = piece
                following = TEXT + len(code) + len(opcode) + 4
                place = places.get(f"{name}:{target}", places.get(target))
                assert place is not None, target
                code += opcode + struct.pack("<i", place - following)
    return code, places


@pytest.fixture
def opened() -> Iterator[Callable[[bytes], int]]:
    """Puts bytes into a file in memory and gives its fd."""
    fds: list[int] = []

    def put(data: bytes) -> int:
        fd = os.memfd_create("elf")
        fds.append(fd)
        os.write(fd, data)
        return fd

    yield put
    for fd in fds:
        os.close(fd)


@pytest.fixture(scope="session")
def libssl() -> Path:
    """The host's own OpenSSL 3; Python's ssl module needs it too."""
    found = [Path(c.path) for c in known_library_files() if c.path.endswith("libssl.so.3")]
    assert found, "no libssl.so.3 on this host: apt-get install libssl3"
    return found[0]
