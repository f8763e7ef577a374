"""Runs programs that are attached to nothing: iterators, and packet programs on a packet.

Takes a program's fd. The supervisor runs an iterator once at start; tests and bench run the packet programs
without a network. Raises OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

from spliffd.kernel import bpf

_PROG_TEST_RUN, _ITER_CREATE = 10, 33


def iterate(prog_fd: int) -> None:
    """Runs an iterator program (5.8) over everything there is, once; what it prints is thrown away."""
    link = bpf.link_create(prog_fd, 0, bpf.ATTACH_ITER)
    try:
        attr = bytearray(bpf.ATTR_BYTES)
        struct.pack_into("=II", attr, 0, link, 0)
        iterator = bpf.call(_ITER_CREATE, attr)
        try:
            while True:
                try:
                    if not os.read(iterator, 4096):
                        return
                except BlockingIOError:
                    continue  # a million objects without output: it wants to be asked again
        finally:
            os.close(iterator)
    finally:
        os.close(link)


class Run(NamedTuple):
    """What one test run of a packet program gave."""

    retval: int
    nanoseconds: int
    """Of one repetition, on average."""
    data: bytes
    """The packet afterwards."""


def run_packet(prog_fd: int, packet: bytes, repeat: int = 1, context: bytes = b"") -> Run:
    """Runs a packet program on ``packet`` (BPF_PROG_TEST_RUN).

    The interface it sees is this namespace's loopback, unless ``context`` (a struct __sk_buff) says another.
    The kernel refuses packets of less than an Ethernet header, 14 bytes.
    """
    into = ctypes.create_string_buffer(len(packet) + 256)
    source = ctypes.create_string_buffer(packet, len(packet))
    about = ctypes.create_string_buffer(context, len(context))
    attr = bytearray(bpf.ATTR_BYTES)
    struct.pack_into(
        "=IIIIQQIIIIQ",
        attr,
        0,
        prog_fd,
        0,
        len(packet),
        len(into),
        ctypes.addressof(source),
        ctypes.addressof(into),
        repeat,
        0,
        len(context),
        0,
        ctypes.addressof(about) if context else 0,
    )
    bpf.call(_PROG_TEST_RUN, attr)
    retval, _, size = struct.unpack_from("=III", attr, 4)
    return Run(retval, struct.unpack_from("=I", attr, 36)[0], into.raw[:size])
