"""Programs that speak TLS in ways that no probe sees, and files that cannot be probed: one for each reason.

``Listener`` is a peer that takes connections and never answers, outside of the lab's cgroup. ``hello`` is a small
program that opens a connection and says a ClientHello, without any library; it can be made for 32 bits. ``broken`` makes
a private copy of libssl that programs can load and spliff cannot probe.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from spliffd.targets.elf import Image
from tests.support.lab import Lab
from tests.support.net import Namespace, inside

CLIENT_HELLO = (
    bytes.fromhex("160301002f0100002b0303") + bytes(range(32)) + bytes.fromhex("000002130101000000")
)
"""A TLS record with the start of a handshake: what packets are recognised by."""

HELLO = r"""
/* PORT SECONDS: connects to 127.0.0.1, says HELLO, and waits. System calls only, so that it is small, and made
 * for 32 bits without a library. */
#ifdef __x86_64__
static long call(long number, long a, long b, long c, long d) {
  register long r10 __asm__("r10") = d;
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
  return result;
}
enum { WRITE = 1, SOCKET = 41, CONNECT = 42, NANOSLEEP = 35, EXIT = 231 };
#else
static long call(long number, long a, long b, long c, long d) {
  long result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
  return result;
}
enum { WRITE = 4, SOCKET = 359, CONNECT = 362, NANOSLEEP = 162, EXIT = 252 };
#endif
static const unsigned char hello[] = {HELLO_BYTES};

__attribute__((used)) void begin(long *stack) {
  char **words = (char **)(stack + 1);
  unsigned port = 0, seconds = 0;
  for (char *at = words[1]; *at; at++) port = port * 10 + *at - '0';
  for (char *at = words[2]; *at; at++) seconds = seconds * 10 + *at - '0';
  unsigned char address[16] = {2, 0, port >> 8, port, 127, 0, 0, 1};
  long wait[2] = {seconds, 0};
  long fd = call(SOCKET, 2, 1, 0, 0);
  if (call(CONNECT, fd, (long)address, 16, 0)) call(EXIT, 1, 0, 0, 0);
  call(WRITE, fd, (long)hello, sizeof hello, 0);
  if (seconds) call(NANOSLEEP, (long)wait, 0, 0, 0);
  call(EXIT, 0, 0, 0, 0);
}
#ifdef __x86_64__
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
#else
__asm__(".globl _start\n_start: mov %esp, %eax\n and $-16, %esp\n sub $12, %esp\n push %eax\n call begin\n");
#endif
"""

PYTHON_HELLO = r"""
import ctypes, socket, sys
port, library = int(sys.argv[1]), sys.argv[2]
def hello():
    peer = socket.create_connection(("127.0.0.1", port))
    peer.sendall(bytes.fromhex(sys.argv[3]))
    return peer
peers, held = [], []
for line in sys.stdin:
    word = line.strip()
    if word == "hello": peers.append(hello())
    elif word == "load": held.append(ctypes.CDLL(library))
    elif word.startswith("get"):
        import http.client, ssl
        connection = http.client.HTTPSConnection(
            "127.0.0.1", int(word.split()[1]), context=ssl._create_unverified_context())
        connection.request("GET", "/hello")
        connection.getresponse().read()
        held.append(connection)
    print(word, flush=True)
"""
"""PORT LIBRARY HELLO, then words on standard input: says a ClientHello itself, loads the library, speaks TLS."""

GRPC = r"""
import grpc, sys
channel = grpc.secure_channel(f"127.0.0.1:{sys.argv[1]}", grpc.ssl_channel_credentials())
grpc.channel_ready_future(channel).result(timeout=600)
"""


class Listener:
    """Takes connections and keeps them, as long as it lives; in a network namespace when one is given."""

    def __init__(self, namespace: Namespace | None = None, port: int = 0) -> None:
        if namespace is None:
            self._socket = socket.create_server(("127.0.0.1", port), backlog=64)
        else:
            with inside(namespace):
                self._socket = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port = self._socket.getsockname()[1]
        self._held: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                self._held.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        """Ends all."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for held in self._held:
            held.close()


def hello(lab: Lab, *, bits: int = 64) -> Path:
    """The small program, made for 64 or 32 bits."""
    source = lab.folder / "hello.c"
    source.write_text(HELLO.replace("HELLO_BYTES", ", ".join(map(str, CLIENT_HELLO))))
    program = lab.folder / f"hello{bits}"
    # Without position independence and stack protectors, which want a C library.
    options = ["-nostdlib", "-static", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie", "-O1"]
    subprocess.run(["gcc", f"-m{bits}", *options, "-o", program, source], check=True, capture_output=True)
    return program


def broken(lab: Lab, name: str, damage: Callable[[bytearray, Image], None]) -> Path:
    """A folder with copies of libssl and libcrypto, the former damaged in a way that the loader does not mind."""
    folder = lab.folder / name
    shutil.copytree(lab.libraries, folder)
    library = folder / "libssl.so.3"
    data = bytearray(library.read_bytes())
    fd = os.open(library, os.O_RDONLY)
    try:
        with Image(fd) as image:
            damage(data, image)
    finally:
        os.close(fd)
    library.write_bytes(data)
    return folder


def breakpoint_at(symbol: str) -> Callable[[bytearray, Image], None]:
    """Damage: the first instructions of a function are breakpoints, where the kernel takes no probe."""

    def damage(data: bytearray, image: Image) -> None:
        at = image.offset_of(image.functions([symbol])[symbol].address)
        data[at : at + 8] = b"\xcc" * 8

    return damage


def without(symbol: str) -> Callable[[bytearray, Image], None]:
    """Damage: a function has another name."""

    def damage(data: bytearray, _image: Image) -> None:
        at = data.index(b"\0" + symbol.encode() + b"\0")
        data[at + len(symbol)] ^= 0x20

    return damage


def sections_elsewhere(data: bytearray, _image: Image) -> None:
    """Damage: the section headers lie behind the end of the file (the loader never reads them)."""
    data[40:48] = (len(data) + 4096).to_bytes(8, "little")
