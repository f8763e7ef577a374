"""The bpf() system call, as few typed functions over raw numbers.

Takes plain integers and bytes, returns file descriptors; every failure is an ``OSError`` with the
kernel's errno. Nothing here knows what the programs do. BCC's loader and libbpf's are not used because
programs are loaded by a process that never loads LLVM, and because everything is attached by links,
which vanish with the process (``uapi/linux/bpf.h`` is the source of every number).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct

_SYSCALL = {"x86_64": (321, 298), "aarch64": (280, 241)}[platform.machine()]
_LIBC = ctypes.CDLL(None, use_errno=True)

MAP_HASH, MAP_ARRAY, MAP_CGROUP_ARRAY, MAP_LRU_HASH, MAP_ARRAY_OF_MAPS, MAP_RINGBUF = 1, 2, 8, 9, 12, 27
MAP_PERCPU_HASH, MAP_PERCPU_ARRAY = 5, 6
F_NO_PREALLOC, F_MMAPABLE = 1 << 0, 1 << 10
F_XDP_HAS_FRAGS = 1 << 5

PROG_KPROBE, PROG_SOCK_OPS, PROG_RAW_TRACEPOINT, PROG_TRACING = 2, 13, 17, 26
PROG_SCHED_CLS, PROG_XDP = 3, 6
ATTACH_NONE, ATTACH_SOCK_OPS, ATTACH_RAW_TP, ATTACH_FENTRY, ATTACH_FEXIT, ATTACH_ITER = 0, 3, 23, 24, 25, 28
ATTACH_PERF_EVENT, ATTACH_UPROBE_MULTI, ATTACH_UPROBE_SESSION = 41, 48, 57
ATTACH_XDP, ATTACH_TCX_INGRESS, ATTACH_TCX_EGRESS = 37, 46, 47

MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY, _PROG_LOAD = 0, 1, 2, 3, 4, 5
_MAP_GET_FD_BY_ID, OBJ_GET_INFO, _RAW_TRACEPOINT_OPEN, _LINK_CREATE = 14, 15, 17, 28
_MAP_LOOKUP_BATCH = 24
_F_RDONLY = 1 << 3

_UPROBE_MULTI_RETURN = 1
PERF_PID_CGROUP, _PERF_CLOEXEC = 1 << 2, 1 << 3

ATTR_BYTES = 144
"""Size of union bpf_attr that covers every field used here; the kernel accepts larger and zero."""

_LOOKUP_BYTES = 32
"""What the kernel needs of it for a look-up."""

_LOAD_ATTEMPTS = 5
"""A signal that arrives while the verifier works makes it give up with EAGAIN (kernel/bpf/verifier.c)."""

_LOG_BYTES = 1 << 20
"""Room for the verifier's complaint: only its tail is shown."""


def call(command: int, attr: bytearray) -> int:
    """One bpf() call; raises OSError."""
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    result: int = _LIBC.syscall(_SYSCALL[0], command, buffer, len(attr))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def map_create(
    kind: int, key: int, value: int, entries: int, flags: int = 0, name: str = "", inner: int = 0
) -> int:
    """Makes a map; sizes in bytes. ``inner`` is the template fd of an array of maps."""
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=IIIIIII16s", attr, 0, kind, key, value, entries, flags, inner, 0, name.encode()[:15])
    return call(MAP_CREATE, attr)


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of ``key``, None when there is none. Works without privilege on an fd that was given."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(value_size)
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=I4xQQQ", attr, 0, fd, ctypes.addressof(key_buffer), ctypes.addressof(value), 0)
    try:
        call(_MAP_LOOKUP, attr)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


class Lookup:
    """Looks up values by 64-bit keys, again and again: in half the time of ``map_lookup``.

    ``value`` holds what was found last, until the next look.
    """

    def __init__(self, fd: int, value_size: int) -> None:
        self._key = ctypes.c_uint64()
        self._buffer = ctypes.create_string_buffer(value_size)
        self._attr = ctypes.create_string_buffer(_LOOKUP_BYTES)
        where = ctypes.addressof(self._key), ctypes.addressof(self._buffer)
        struct.pack_into("=I4xQQQ", self._attr, 0, fd, *where, 0)
        self._call = _LIBC["syscall"]  # an object of its own, so that the types are this one's alone
        self._call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long)
        self._call.restype = ctypes.c_long
        self._arguments = (_SYSCALL[0], _MAP_LOOKUP, ctypes.addressof(self._attr), _LOOKUP_BYTES)
        self.value = memoryview(self._buffer).cast("B")

    def __call__(self, key: int) -> bool:
        """Whether there is a value for ``key``; raises OSError where looking is refused."""
        self._key.value = key
        if not self._call(*self._arguments):
            return True
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            return False
        raise OSError(number, os.strerror(number))


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Sets ``key`` to ``value``."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, len(value))
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=I4xQQQ", attr, 0, fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0)
    call(_MAP_UPDATE, attr)


def map_delete(fd: int, key: bytes) -> None:
    """Removes ``key``; an absent key is not an error."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=I4xQQQ", attr, 0, fd, ctypes.addressof(key_buffer), 0, 0)
    try:
        call(_MAP_DELETE, attr)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def map_read_only(fd: int) -> int:
    """Another fd of the same map, for looking only: what a process without privileges is handed."""
    info = ctypes.create_string_buffer(8)  # struct bpf_map_info: type, id, ...
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=IIQ", attr, 0, fd, len(info), ctypes.addressof(info))
    call(OBJ_GET_INFO, attr)
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=III", attr, 0, struct.unpack("=II", info.raw)[1], 0, _F_RDONLY)
    return call(_MAP_GET_FD_BY_ID, attr)


def map_lookup_batch(
    fd: int, after: bytes, key_size: int, value_size: int, room: int
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Up to ``room`` entries of a hash map (5.6), and where to go on: empty when that was all.

    ``after`` is empty at first. Entries that come and go meanwhile may be missed, or seen twice. Raises
    OSError(ENOSPC) when one bucket of the map holds more than ``room``.
    """
    keys = ctypes.create_string_buffer(key_size * room)
    values = ctypes.create_string_buffer(value_size * room)
    before = ctypes.create_string_buffer(after, max(key_size, 4))
    following = ctypes.create_string_buffer(max(key_size, 4))
    attr = bytearray(ATTR_BYTES)
    struct.pack_into(
        "=QQQQII",
        attr,
        0,
        ctypes.addressof(before) if after else 0,
        ctypes.addressof(following),
        ctypes.addressof(keys),
        ctypes.addressof(values),
        room,
        fd,
    )
    more = True
    try:
        call(_MAP_LOOKUP_BATCH, attr)
    except OSError as error:
        if error.errno != errno.ENOENT:  # the last batch
            raise
        more = False
    (found,) = struct.unpack_from("=I", attr, 32)
    # Taken once: each look at ``raw`` copies the whole buffer.
    key_bytes, value_bytes = keys.raw, values.raw
    entries = [
        (
            key_bytes[i * key_size : (i + 1) * key_size],
            value_bytes[i * value_size : (i + 1) * value_size],
        )
        for i in range(found)
    ]
    return entries, following.raw if more else b""


def map_count(fd: int, key_size: int) -> int:
    """How many entries a hash map has, by walking its keys; changes under way make it approximate."""
    key = ctypes.create_string_buffer(key_size)
    following = ctypes.create_string_buffer(key_size)
    count = 0
    first = True
    while True:
        attr = bytearray(ATTR_BYTES)
        where = 0 if first else ctypes.addressof(key)
        struct.pack_into("=I4xQQ", attr, 0, fd, where, ctypes.addressof(following))
        try:
            call(_MAP_NEXT_KEY, attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return count
            raise
        count += 1
        first = False
        key.raw = following.raw


class VerifierError(OSError):
    """The kernel refused a program; ``log`` is the tail of what the verifier said."""

    def __init__(self, number: int, log: str) -> None:
        super().__init__(number, os.strerror(number))
        self.log = log


def prog_load(
    kind: int, code: bytes, name: str, attach_type: int = 0, btf_id: int = 0, flags: int = 0
) -> int:
    """Loads instructions; raises VerifierError with the verifier's last lines."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")  # "Dual BSD/GPL" in the kernel's terms

    def attempt(log: ctypes.Array[ctypes.c_char] | None) -> int:
        attr = bytearray(ATTR_BYTES)
        struct.pack_into(
            "=IIQQIIQII16sII",
            attr,
            0,
            kind,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(licence),
            1 if log else 0,
            len(log) if log else 0,
            ctypes.addressof(log) if log else 0,
            0,
            flags,
            name.encode()[:15],
            0,
            attach_type,
        )
        struct.pack_into("=I", attr, 108, btf_id)
        for _ in range(_LOAD_ATTEMPTS - 1):
            try:
                return call(_PROG_LOAD, attr)
            except BlockingIOError:
                continue  # EAGAIN
        return call(_PROG_LOAD, attr)

    try:
        return attempt(None)
    except OSError as refusal:
        # Asking for the log costs time; only a refusal is worth it. Before 6.4 a log that is too small
        # ends the attempt with ENOSPC, and what was kept is its beginning.
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return attempt(log)
        except OSError:
            tail = log.value.decode(errors="replace").strip().splitlines()[-12:]
            raise VerifierError(refusal.errno or 0, "\n".join(tail)) from None


def raw_tracepoint_open(prog_fd: int, name: str = "") -> int:
    """Attaches a raw (named) or typed (unnamed: the program knows) tracepoint; the fd is a link."""
    attr = bytearray(ATTR_BYTES)
    text = ctypes.create_string_buffer(name.encode())
    struct.pack_into("=QI", attr, 0, ctypes.addressof(text) if name else 0, prog_fd)
    return call(_RAW_TRACEPOINT_OPEN, attr)


def link_create(prog_fd: int, target: int, attach_type: int, cookie: int = 0, flags: int = 0) -> int:
    """A link to a cgroup (ATTACH_SOCK_OPS), a perf event (ATTACH_PERF_EVENT, with a cookie) or an interface.

    The ``target`` is an fd; for ATTACH_XDP, ATTACH_TCX_INGRESS, ATTACH_TCX_EGRESS the interface's index.
    """
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("=IIIIQ", attr, 0, prog_fd, target, attach_type, flags, cookie)
    return call(_LINK_CREATE, attr)


def uprobe_multi_link(
    prog_fd: int, path: str, offsets: list[int], cookies: list[int], *, returns: bool, session: bool = False
) -> int:
    """One link for all ``offsets`` (file offsets) of ``path``, each with its cookie (kernel 6.6).

    ``session``: the program sees both ends of a call, the second one when it says so at the first (6.13).
    """
    count = len(offsets)
    name = ctypes.create_string_buffer(os.fsencode(path))
    places = (ctypes.c_uint64 * count)(*offsets)
    tags = (ctypes.c_uint64 * count)(*cookies)
    attr = bytearray(ATTR_BYTES)
    struct.pack_into(
        "=IIIIQQQQIII",
        attr,
        0,
        prog_fd,
        0,
        ATTACH_UPROBE_SESSION if session else ATTACH_UPROBE_MULTI,
        0,
        ctypes.addressof(name),
        ctypes.addressof(places),
        0,
        ctypes.addressof(tags),
        count,
        _UPROBE_MULTI_RETURN if returns else 0,
        0,
    )
    return call(_LINK_CREATE, attr)


def uprobe_perf_link(prog_fd: int, path: str, offset: int, cookie: int, *, returns: bool) -> list[int]:
    """The same for one place through perf_event_open (kernel 5.15); returns the fds to keep open."""
    return _perf_link(prog_fd, "uprobe", path, offset, cookie, returns=returns)


def kprobe_perf_link(prog_fd: int, function: str, *, returns: bool) -> list[int]:
    """A kprobe at a kernel function's entry or return; returns the fds to keep open.

    FileNotFoundError: this kernel has no kprobes.
    """
    return _perf_link(prog_fd, "kprobe", function, 0, 0, returns=returns)


def _perf_link(prog_fd: int, source: str, name: str, offset: int, cookie: int, *, returns: bool) -> list[int]:
    with open(f"/sys/bus/event_source/devices/{source}/type", encoding="ascii") as file:
        kind = int(file.read())
    text = ctypes.create_string_buffer(os.fsencode(name))
    attr = bytearray(128)
    struct.pack_into("=IIQ", attr, 0, kind, len(attr), 1 if returns else 0)
    struct.pack_into("=QQ", attr, 56, ctypes.addressof(text), offset)
    event = perf_event_open(attr, -1, 0)
    try:
        link = link_create(prog_fd, event, ATTACH_PERF_EVENT, cookie)
    except OSError:
        os.close(event)
        raise
    return [link, event]


def perf_event_open(attr: bytearray, target: int, cpu: int, flags: int = 0) -> int:
    """A perf event (struct perf_event_attr) of a process, of all (-1), or of a cgroup (PERF_PID_CGROUP)."""
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    event: int = _LIBC.syscall(_SYSCALL[1], buffer, target, cpu, -1, flags | _PERF_CLOEXEC)
    if event < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return event


def map_memory(fd: int, size: int, *, writable: bool) -> mmap.mmap:
    """Maps an F_MMAPABLE array into this process."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    length = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
    return mmap.mmap(fd, length, mmap.MAP_SHARED, protection)
