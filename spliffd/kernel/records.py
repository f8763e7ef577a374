"""The records of bpf/events.h, as offsets and unpackers.

Takes a buffer and a position, returns plain values. Hot code unpacks only what it needs: the head of the
record on every record, the connection part once for each connection. tests/kernel/test_records.py
compares these numbers with the compiler's.
"""

from __future__ import annotations

import ipaddress
import mmap
import os
import struct

import msgspec

# enum op
OPS = {
    "read": 1,
    "write": 2,
    "handshake": 3,
    "connect": 4,
    "accept": 5,
    "set_fd": 6,
    "free": 7,
    "clear": 8,
    "import": 9,
    "uncork": 10,
    "alpn": 11,
    "verified": 12,
    "error": 13,
}
# enum flavour
FLAVOURS = {"none": 0, "count": 1, "pointer": 2, "register": 3, "stack": 4, "zero": 5, "vector": 6}
COOKIE_ZERO_IS_EOF, COOKIE_KNOWN_ONLY = 1 << 24, 1 << 25

# enum record_kind
DATA, HANDSHAKE, SOCKET, CLOSE, EXIT, EOF, FACT, SKIPPED = range(1, 9)
OF_A_CONNECTION = (HANDSHAKE, SOCKET, CLOSE, EOF, FACT, SKIPPED)
# enum direction
SENT, RECEIVED = 0, 1
# enum record_flag
FLAG_FAULT, FLAG_CONTINUED = 1, 2
FLAG_SPARED = 4
"""Shifted by the direction: something is missing before this, and is in no offset; nobody wanted it."""
FLAGS_SPARED = FLAG_SPARED | FLAG_SPARED << 1
# enum conn_flag
CONN_HANDSHAKE_SEEN, CONN_HANDSHAKE_DONE, CONN_SOCKET_ENDED, CONN_HANDSHAKE_FAILED = 1, 2, 4, 8
# enum fact
FACT_ALPN, FACT_VERIFIED, FACT_FAILED = range(3)
ROLES = ("", "client", "server")

HEADER_BYTES = 192
CONN_AT = 48
CONN_BYTES = 144
KEY_AT = CONN_AT
KEY_BYTES = 32
"""tgid, exec_id, start_ns, ssl, generation: unique for one TLS connection, ever."""

HEAD = struct.Struct("=BBHIQQQQ")
"""kind, direction, flags, captured, time, offset, size, call_start."""
METHOD_AT = CONN_AT + 85
"""How the socket was found: changes when that happens, or when another is found."""
WHOLE = struct.Struct(f"{HEAD.format}{KEY_AT - HEAD.size}x{KEY_BYTES}s{METHOD_AT - KEY_AT - KEY_BYTES}xB")
"""The same, the connection's key, and its method: all that is looked at of nearly every record."""
TGID_START = struct.Struct("=I4xQ")
"""At KEY_AT: tgid and start_ns."""
_CONN = struct.Struct("=IIQQQ QQ16s16sHHBBBB IIII16s QQQ")
assert _CONN.size == CONN_BYTES

UNWANTED_STREAMS = 4
_SKIPPED = struct.Struct(f"={UNWANTED_STREAMS}I{UNWANTED_STREAMS}I{UNWANTED_STREAMS}QII")
SKIPPED_BYTES = _SKIPPED.size


def unpack_skipped(buffer: bytes | mmap.mmap, at: int) -> tuple[list[tuple[int, int, int]], int, int]:
    """Decodes struct skipped: stream, frames, payload of each; bytes left of the last frame, its stream."""
    numbers = _SKIPPED.unpack_from(buffer, at)
    n = UNWANTED_STREAMS
    of_each = zip(numbers[:n], numbers[n : 2 * n], numbers[2 * n : 3 * n], strict=True)
    parts = [each for each in of_each if each[1] or each[2]]
    return parts, numbers[-2], numbers[-1]


PROCESS_RECORD = struct.Struct("=IIQQIHHHH4x")
"""tgid, ppid, start_ns, time, uid, bytes of exe, cgroup and cmdline behind it, flags."""


PROCESS_MAPPED = 2
"""enum process_flag: no exec, but a file that was mapped for the first time; which one stands behind."""
PROCESS_TESTED = 4
"""No exec either, and of no process: a self-test of relocated probes can be judged."""
_MAPPED_FILE = struct.Struct("=QQ")


def mapped_file(buffer: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """Device (as os.makedev makes it) and inode of the mapped_record at ``at``."""
    device, inode = _MAPPED_FILE.unpack_from(buffer, at + PROCESS_RECORD.size)
    return os.makedev(device >> 20, device & 0xFFFFF), inode


PROCESS_PATH_CUT = 1
"""enum process_flag: the beginning of the executable's or the cgroup's path is missing."""


class Exec(msgspec.Struct, gc=False):
    """A process_record's text: what the process was when it was started."""

    ppid: int
    uid: int
    exe: str
    cgroup: str
    cmdline: bytes


def unpack_exec(record: bytes) -> Exec:
    """Decodes a whole process_record; text that was cut begins with "..."."""
    _, ppid, _, _, uid, exe, cgroup, cmdline, flags = PROCESS_RECORD.unpack_from(record)
    at = PROCESS_RECORD.size
    cut = "..." if flags & PROCESS_PATH_CUT else ""
    return Exec(
        ppid,
        uid,
        _path(record[at : at + exe], cut),
        _path(record[at + exe : at + exe + cgroup], cut) or "/",
        record[at + exe + cgroup : at + exe + cgroup + cmdline],
    )


def cgroup_of(buffer: bytes | memoryview | mmap.mmap, at: int) -> str:
    """The path of the cgroup in the process_record at ``at``."""
    _, _, _, _, _, exe, cgroup, _, flags = PROCESS_RECORD.unpack_from(buffer, at)
    begin = at + PROCESS_RECORD.size + exe
    return _path(bytes(buffer[begin : begin + cgroup]), "..." if flags & PROCESS_PATH_CUT else "") or "/"


def _path(names: bytes, cut: str) -> str:
    parts = names.split(b"\0")[:-1]
    return cut + "".join(f"/{name.decode(errors='replace')}" for name in reversed(parts)) if parts else ""


class Conn(msgspec.Struct, gc=False):
    """struct conn: who, which socket, how far. Text is decoded, addresses are text."""

    tgid: int
    exec_id: int
    start_ns: int
    generation: int
    socket_cookie: int
    netns_cookie: int
    local_address: str
    remote_address: str
    local_port: int
    remote_port: int
    family: int
    method: int
    role: int
    library: int
    tid: int
    ppid: int
    uid: int
    flags: int
    comm: str
    handshake_start: int
    offset_sent: int
    offset_received: int


def unpack_conn(buffer: bytes | memoryview | mmap.mmap, at: int) -> Conn:
    """Decodes struct conn at ``at``; any bytes give a result."""
    (
        tgid, exec_id, start_ns, _ssl, generation, cookie, netns, local, remote, local_port, remote_port,
        family, method, role, library, tid, ppid, uid, flags, comm, handshake_start, sent, received,
    ) = _CONN.unpack_from(buffer, at)  # fmt: skip
    return Conn(
        tgid, exec_id, start_ns, generation, cookie, netns, _address(local, family), _address(remote, family),
        local_port, remote_port, family, method, role, library, tid, ppid, uid, flags,
        comm.partition(b"\0")[0].decode("utf-8", "replace"), handshake_start, sent, received,
    )  # fmt: skip


def _address(raw: bytes, family: int) -> str:
    if family == 4:
        return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}"
    if family == 6:
        return str(ipaddress.IPv6Address(raw))
    return ""
