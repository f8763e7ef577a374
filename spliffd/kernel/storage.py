"""Makes maps whose values hang on what they belong to: here, on a thread's task.

The kernel finds such a value by one pointer instead of a hash, and frees it with its thread. It makes no such
map without type information, so the least of it is written down here: a key of 32 bits and a value that is an
array of 64-bit words (Documentation/bpf/btf.rst; kernel/bpf/bpf_local_storage.c asks for that much).
"""

from __future__ import annotations

import ctypes
import os
import struct

from spliffd.kernel import bpf

MAP_TASK_STORAGE = 29
"""Linux 5.11."""

_BTF_LOAD = 18
_MAGIC, _VERSION, _HEADER_BYTES = 0xEB9F, 1, 24
_INT, _ARRAY = 1 << 24, 3 << 24
_SIGNED = 1 << 24
_KEY_TYPE, _WORD_TYPE, _VALUE_TYPE = 1, 2, 3
_WORD = 8


def task_storage(value: int, name: str) -> int:
    """Makes a map of task to ``value`` bytes (a multiple of 8), zero at first; its fd. Raises OSError."""
    types = _load(describe(value // _WORD))
    try:
        attr = bytearray(bpf.ATTR_BYTES)
        head = (MAP_TASK_STORAGE, 4, value, 0, bpf.F_NO_PREALLOC, 0, 0, name.encode()[:15])
        struct.pack_into("=7I16s", attr, 0, *head)
        struct.pack_into("=3I", attr, 48, types, _KEY_TYPE, _VALUE_TYPE)
        return bpf.call(bpf.MAP_CREATE, attr)
    finally:
        os.close(types)


def describe(words: int) -> bytes:
    """The type information: ``int``, ``u64``, and an array of as many of those."""
    names = b"\0int\0u64\0"
    types = struct.pack("=4I", names.index(b"int"), _INT, 4, _SIGNED | 32)
    types += struct.pack("=4I", names.index(b"u64"), _INT, _WORD, 64)
    types += struct.pack("=6I", 0, _ARRAY, 0, _WORD_TYPE, _KEY_TYPE, words)
    return (
        struct.pack("=HBB5I", _MAGIC, _VERSION, 0, _HEADER_BYTES, 0, len(types), len(types), len(names))
        + types
        + names
    )


def _load(blob: bytes) -> int:
    """Gives the type information to the kernel; returns its fd."""
    buffer = ctypes.create_string_buffer(blob, len(blob))
    attr = bytearray(bpf.ATTR_BYTES)
    struct.pack_into("=QQII", attr, 0, ctypes.addressof(buffer), 0, len(blob), 0)
    return bpf.call(_BTF_LOAD, attr)
