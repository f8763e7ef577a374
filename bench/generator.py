"""Writes synthetic TLS records into a worker's ring, from the kernel, at a chosen rate.

A process of its own: compiles one small traffic-control program with the project's own headers (so a
record has the layout of bpf/events.h and asks for wake-ups as the real programs do), and runs it through
BPF_PROG_TEST_RUN, never attached to anything. One run is one exchange: a request received and a response
sent, as a server's library would write them, on the next of 256 keep-alive connections. Path, request id
and ETag are new in every exchange and the cookie in every connection, as in real traffic, unless it is told
to repeat itself.

Started by ``worker`` with inherited map fds and "vary" or "repeat"; reads "RATE SECONDS" lines, answers
"OFFERED SECONDS NS", NS being the CPU time that one exchange cost the producer.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import sys
import time

from spliffd.kernel import bpf
from spliffd.kernel.compile import source_folder
from spliffd.kernel.flows import FLOW_SIZE
from spliffd.kernel.maps import NUMBERS

CONNECTIONS = 256
COOKIE = 100_000
"""Of the first connection's socket; the others follow."""
PROG_SCHED_CLS = 3
PROG_TEST_RUN = 10
TICK_SECONDS = 0.001
"""Bursts of a millisecond: what a busy server's two cores do between two looks of the worker."""

STATE_BYTES = 4096
REQUEST_AT, RESPONSE_AT = 1024, 2048

REQUEST = (
    b"GET /api/v2/customers/4711/orders/@@@@@@@@?page=3 HTTP/1.1\r\nHost: shop.example.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept: application/json\r\n"
    b"Accept-Language: en-GB,en;q=0.8\r\nAccept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\n"
    b"Content-Type: application/json\r\nX-Request-Id: @@@@@@@@-97a4-4f5c-8e55-3f3c9b7f2c11\r\n"
    b"Content-Length: 64\r\n"
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"Content-Type: application/json; charset=utf-8\r\nCache-Control: no-store, max-age=0\r\n"
    b"Strict-Transport-Security: max-age=31536000; includeSubDomains\r\nVary: Accept-Encoding\r\n"
    b'ETag: "@@@@@@@@"\r\n'
    b"X-Content-Type-Options: nosniff\r\nConnection: keep-alive\r\nContent-Length: 128\r\n"
)
REQUEST_BYTES, RESPONSE_BYTES = 529, 569
DIGITS = b"@@@@@@@@"
"""Where the exchange's number stands, in hexadecimal."""
BODY_BYTES = (128, 64)
"""Of the response (sent) and the request (received), as their Content-Length says."""

# struct conn, as spliffd/kernel/records.py decodes it.
CONN = struct.Struct("=IIQQQ QQ16s16sHHBBBB IIII16s QQQ")

PROGRAM = """
struct state { u64 number; u64 generation; u64 conns; u64 pad; };

static __always_inline void digits(u8 *at, u32 number) {
#pragma unroll
  for (u32 i = 0; i < 8; i++) {
    u32 digit = number >> (28 - 4 * i) & 15;
    at[i] = digit < 10 ? '0' + digit : 'a' + digit - 10;
  }
}

static __always_inline void emit(u64 state, u64 from, u64 conn, u64 generation, u32 direction, u64 round,
                                 u64 sent, u64 received, u32 number, void *ring) {
  struct record *record = bpf_ringbuf_reserve(ring, sizeof(struct record) + 832, 0);
  if (!record) {
    count(COUNTER_RING_FULL_DATA_RECORDS, 1);
    count(COUNTER_RING_FULL_DATA_BYTES, direction ? received : sent);
    return;
  }
  bpf_probe_read_kernel(record, sizeof(struct record) + LARGEST, (void *)(state + from));
  record->time = bpf_ktime_get_ns();
  record->call_start = record->time;
  record->offset = round * (direction ? received : sent);
  record->conn.ssl += conn << 6;
  record->conn.generation = generation;
  record->conn.remote_port += conn;
  record->conn.socket_cookie += conn;
  u8 *text = (u8 *)(record + 1);
  if (direction == RECEIVED) {
    digits(text + PATH_AT, VARY ? number : 0);
    digits(text + ID_AT, VARY ? number : 0);
    digits(text + COOKIE_AT, VARY ? (u32)conn : 0);
  } else {
    digits(text + ETAG_AT, VARY ? number : 0);
  }
  bpf_ringbuf_submit(record, wakeup(ring, 0));
}

int one_exchange(struct __sk_buff *skb) {
  u32 zero = 0;
  struct state *state = bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, STATE_FD), &zero);
  void *ring = bpf_map_lookup_elem(MAP_RINGS, &zero);
  if (!state || !ring)
    return 0;
  u64 number = state->number++;
  if (!number)
    state->generation = bpf_ktime_get_ns(); /* the connections begin now, not before the worker did */
  u64 conn = number % CONNECTIONS, round = number / CONNECTIONS;
  u64 since = state->generation, from = (u64)state;
  emit(from, REQUEST_AT, conn, since, RECEIVED, round, RESPONSE_BYTES, REQUEST_BYTES, number, ring);
  emit(from, RESPONSE_AT, conn, since, SENT, round, RESPONSE_BYTES, REQUEST_BYTES, number, ring);
  return 0;
}
"""


def plaintext(direction: int) -> bytes:
    """What one record carries: a cookie fills the head up, so that the sizes are what they are to be."""
    head, size = ((RESPONSE, RESPONSE_BYTES), (REQUEST, REQUEST_BYTES))[direction]
    head += b"Set-Cookie: " if direction == 0 else b"Cookie: @@@@@@@@"
    body = BODY_BYTES[direction]
    return head + b"c" * (size - body - len(head) - 4) + b"\r\n\r\n" + b"x" * body


def template(direction: int, pid: int) -> bytes:
    """One whole record; the program changes time, offset, connection and digits."""
    payload = plaintext(direction)
    size = len(payload)
    conn = CONN.pack(
        pid, 1, 1, 0x7F0000000000, 0,
        COOKIE, 1, bytes([192, 0, 2, 10]), bytes([198, 51, 100, 25]), 443, 20000, 4, 1, 2, 1,
        pid, 1, 0, 3, b"nginx",
        0, 0, 0,
    )  # fmt: skip
    head_ = struct.pack("=BBHIQQQQII", 1, direction, 0, size, 0, 0, size, 0, pid, 0)
    return head_ + conn + payload


def state(pid: int) -> bytes:
    """The only value of the program's map: counters, then both templates."""
    value = bytearray(STATE_BYTES)
    for at, record in ((REQUEST_AT, template(1, pid)), (RESPONSE_AT, template(0, pid))):
        value[at : at + len(record)] = record
    return bytes(value)


def places(direction: int) -> list[int]:
    """Where digits go in the plaintext."""
    return [found.start() for found in re.finditer(DIGITS, plaintext(direction))]


def load(fds: dict[str, int], *, vary: bool) -> int:
    """Compiles and loads the program over the inherited maps; returns its fd."""
    import bcc

    folder = source_folder()
    os.environ["BCC_KERNEL_SOURCE"] = str(folder)
    state_fd = bpf.map_create(bpf.MAP_ARRAY, 4, STATE_BYTES, 1, name="bench_state")
    bpf.map_update(state_fd, struct.pack("=I", 0), state(os.getpid()))
    text = "".join((folder / name).read_text() for name in ("events.h", "maps.h", "flows.h", "common.bpf.h"))
    text = re.sub(r"MAP\((\d+)\)", lambda found: f"MAP({fds[NUMBERS[int(found[1])]]})", text)
    text = "#include <linux/types.h>\n#include <uapi/linux/ptrace.h>\n" + text.replace("#pragma once", "")
    (path, identity, cookie), (etag,) = places(1), places(0)
    constants = {
        "VARY": int(vary), "PATH_AT": path, "ID_AT": identity, "COOKIE_AT": cookie, "ETAG_AT": etag,
        "STATE_FD": state_fd, "CONNECTIONS": CONNECTIONS, "LARGEST": max(REQUEST_BYTES, RESPONSE_BYTES),
        "REQUEST_AT": REQUEST_AT, "RESPONSE_AT": RESPONSE_AT,
        "REQUEST_BYTES": REQUEST_BYTES, "RESPONSE_BYTES": RESPONSE_BYTES,
    }  # fmt: skip
    flags = [f"-D{name}={value}" for name, value in constants.items()]
    compiled = bcc.BPF(text=text + PROGRAM, cflags=[*flags, "-Wno-macro-redefined"])
    name = b"one_exchange"
    code = ctypes.string_at(
        bcc.lib.bpf_function_start(compiled.module, name), bcc.lib.bpf_function_size(compiled.module, name)
    )
    return bpf.prog_load(PROG_SCHED_CLS, code, "one_exchange")


def open_flows(flows_fd: int) -> None:
    """Enters the connections' flows, with packets seen on interface 1, as the packet programs would."""
    hop = struct.pack("=IIQQQQQ", 1, 2, 4711, 4711, 1_000_000, 2_000_000, 1)
    for conn in range(CONNECTIONS):
        value = struct.pack(
            "=QQQQ16s16sHHBBBBIIQQ", 1, 1, 0, 1, bytes([192, 0, 2, 10]), bytes([198, 51, 100, 25]),
            443, 20000 + conn, 4, 2, 1, 0, 0, 1, 0, 0,
        )  # fmt: skip
        bpf.map_update(flows_fd, struct.pack("=Q", COOKIE + conn), (value + hop).ljust(FLOW_SIZE, b"\0"))


class Run:
    """BPF_PROG_TEST_RUN of one program: ``run(n)`` makes n exchanges."""

    def __init__(self, prog_fd: int) -> None:
        self._packet = ctypes.create_string_buffer(64)  # the program never looks at it
        self._attr = bytearray(bpf.ATTR_BYTES)
        struct.pack_into("=IIIIQ", self._attr, 0, prog_fd, 0, 64, 0, ctypes.addressof(self._packet))

    def run(self, count: int) -> None:
        """Runs it ``count`` times in one system call."""
        struct.pack_into("=I", self._attr, 32, count)
        bpf.call(PROG_TEST_RUN, self._attr)


def offer(program: Run, rate: int, seconds: float) -> tuple[int, float, float]:
    """``rate`` exchanges a second, in bursts a tick apart; returns exchanges, seconds, CPU ns of one."""
    began = time.monotonic()
    running = 0
    done = 0
    while (now := time.monotonic() - began) < seconds:
        due = int(now * rate) - done
        if due > 0:
            before = time.thread_time_ns()
            program.run(due)
            running += time.thread_time_ns() - before
            done += due
        time.sleep(TICK_SECONDS)
    return done, time.monotonic() - began, running / max(1, done)


def main() -> None:
    """Answers lines until standard input ends."""
    program = Run(load(json.loads(sys.argv[1]), vary=sys.argv[2] == "vary"))
    print("ready", flush=True)
    for line in sys.stdin:
        rate, seconds = line.split()
        done, took, cost = offer(program, int(rate), float(seconds))
        print(done, took, cost, flush=True)


if __name__ == "__main__":
    main()
