"""The records of bpf/events.h as C lays them out, against the offsets that Python decodes by."""

from __future__ import annotations

import subprocess
import sys

from spliffd import counters
from spliffd.kernel import flows, hellos, maps, records, unwanted
from spliffd.kernel.compile import source_folder
from spliffd.protocols import tls_errors
from spliffd.stages import self_tests

OFFSETS = {
    ("record", "kind"): 0,
    ("record", "direction"): 1,
    ("record", "flags"): 2,
    ("record", "captured"): 4,
    ("record", "time"): 8,
    ("record", "offset"): 16,
    ("record", "size"): 24,
    ("record", "call_start"): 32,
    ("record", "conn"): records.CONN_AT,
    ("conn", "tgid"): 0,
    ("conn", "exec_id"): 4,
    ("conn", "start_ns"): 8,
    ("conn", "ssl"): 16,
    ("conn", "generation"): 24,
    ("conn", "socket_cookie"): records.KEY_BYTES,
    ("conn", "local"): 48,
    ("conn", "remote"): 64,
    ("conn", "local_port"): 80,
    ("conn", "family"): 84,
    ("conn", "method"): 85,
    ("conn", "role"): 86,
    ("conn", "library"): 87,
    ("conn", "tid"): 88,
    ("conn", "flags"): 100,
    ("conn", "comm"): 104,
    ("conn", "handshake_start"): 120,
    ("conn", "offset"): 128,
    ("settings", "netns_cookie"): 32,
    ("demand", "word"): 8 * maps.DEMAND_WORD,
    ("demand", "rate"): 8 * maps.DEMAND_RATE,
    ("demand", "share"): 8 * maps.DEMAND_SHARE,
    ("flow_key", "local"): 8,
    ("flow_key", "remote"): 24,
    ("flow_key", "local_port"): 40,
    ("flow_key", "family"): 44,
    ("flow", "first_ns"): 0,
    ("flow", "tcp_received"): 8,
    ("flow", "closed_ns"): 16,
    ("flow", "netns_cookie"): 24,
    ("flow", "local"): 32,
    ("flow", "remote"): 48,
    ("flow", "local_port"): 64,
    ("flow", "remote_port"): 66,
    ("flow", "family"): 68,
    ("flow", "role"): 69,
    ("flow", "hops"): 70,
    ("flow", "flags"): 71,
    ("flow", "tgid"): 72,
    ("flow", "state"): 76,
    ("flow", "tcp_sent"): 80,
    ("flow", "last_ns"): 88,
    ("flow", "hop"): 96,
    ("hop", "hook"): 4,
    ("hop", "packets"): 8,
    ("hop", "bytes"): 24,
    ("hop", "first_ns"): 40,
    ("hello", "side"): 4,
    ("hello_side", "have"): 4,
    ("hello_side", "alert"): 16,
    ("hello_side", "bytes"): 20,
}
SIZES = {
    "record": records.HEADER_BYTES,
    "conn": records.CONN_BYTES,
    "process_record": records.PROCESS_RECORD.size,
    "exec": maps.EXEC_VALUE,
    "calls": maps.CALLS_VALUE,
    "conn_key": maps.CONN_KEY,
    "conn_state": maps.CONN_VALUE,
    "walk": maps.WALK_VALUE,
    "unwanted": unwanted.ENTRY_BYTES,
    "skipped": records.SKIPPED_BYTES,
    "flow_key": maps.FLOW_KEY,
    "flow_cookie": maps.FLOW_VALUE,
    "settings": maps.SETTINGS.size,
    "demand": maps.DEMAND_BYTES,
    "wanted_key": maps.WANTED_KEY,
    "flow": flows.FLOW_SIZE,
    "hello": hellos.HELLO_SIZE,
    "asked": maps.ASKED_VALUE,
}
ENUMS = {
    "RECORD_DATA": records.DATA,
    "RECORD_HANDSHAKE": records.HANDSHAKE,
    "RECORD_SOCKET": records.SOCKET,
    "RECORD_CLOSE": records.CLOSE,
    "RECORD_EXIT": records.EXIT,
    "RECORD_EOF": records.EOF,
    "RECORD_FACT": records.FACT,
    "RECORD_SKIPPED": records.SKIPPED,
    "FACT_ALPN": records.FACT_ALPN,
    "FACT_VERIFIED": records.FACT_VERIFIED,
    "FACT_FAILED": records.FACT_FAILED,
    "CONN_HANDSHAKE_FAILED": records.CONN_HANDSHAKE_FAILED,
    "LIBRARY_GNUTLS": counters.LIBRARIES.index("gnutls") + 1,
    "ERR_LIB_SSL": tls_errors.ERR_LIB_SSL,
    "SENT": records.SENT,
    "RECEIVED": records.RECEIVED,
    "FLAG_FAULT": records.FLAG_FAULT,
    "FLAG_CONTINUED": records.FLAG_CONTINUED,
    "CONN_HANDSHAKE_SEEN": records.CONN_HANDSHAKE_SEEN,
    "CONN_HANDSHAKE_DONE": records.CONN_HANDSHAKE_DONE,
    "CONN_SOCKET_ENDED": records.CONN_SOCKET_ENDED,
    "PROCESS_PATH_CUT": records.PROCESS_PATH_CUT,
    "PROCESS_MAPPED": records.PROCESS_MAPPED,
    "PROCESS_TESTED": records.PROCESS_TESTED,
    "SELF_TEST_ENOUGH": self_tests.ENOUGH,
    "SELF_TEST_MISSED": self_tests.MISSED,
    "COOKIE_ZERO_IS_EOF": records.COOKIE_ZERO_IS_EOF,
    "COUNTERS": len(counters.KERNEL),
    "COUNTER_SLOTS": counters.KERNEL_STRIDE,
    "HOPS": flows.HOPS,
    "HELLO_ROOM": hellos.HELLO_ROOM,
    "FLOW_CLIENT_HELLO": flows.CLIENT_HELLO,
    "FLOW_MORE_HOPS": flows.MORE_HOPS,
    "FLOW_SEEDED": flows.SEEDED,
    "FLOW_CONNECTING": flows.CONNECTING,
    "FLOW_ESTABLISHED": flows.ESTABLISHED,
    "FLOW_CLOSED": flows.CLOSED,
    **{f"HOOK_{name}": number for number, name in enumerate(flows.HOOKS) if number},
    **{f"PACKET_{name.upper()}": number for number, name in enumerate(counters.PACKET_OUTCOMES)},
    **{f"OP_{name.upper()}": number for name, number in records.OPS.items()},
    **{f"FLAVOUR_{name.upper()}": number for name, number in records.FLAVOURS.items()},
    **{f"COUNTER_{name.upper()}": number for number, name in enumerate(counters.KERNEL)},
    **{
        f"METHOD_{name.removeprefix('SOCKET_').removeprefix('PROCESS_')}": number
        for number, name in enumerate(counters.METHODS)
    },
    **{f"ROLE_{(name or 'unknown').upper()}": number for number, name in enumerate(records.ROLES)},
}

COMPILE = """
import os, sys
import bcc
os.chdir("/")
bcc.BPF(text=sys.stdin.read())
"""


def compile_with(assertions: str) -> subprocess.CompletedProcess[str]:
    folder = source_folder()
    text = "#include <linux/types.h>\n" + "".join(
        (folder / name).read_text() for name in ("events.h", "maps.h", "flows.h")
    )
    return subprocess.run(
        [sys.executable, "-c", COMPILE],
        input=text + assertions,
        capture_output=True,
        text=True,
        check=False,
        env={"BCC_KERNEL_SOURCE": str(folder), "PATH": "/usr/bin:/bin"},
    )


def test_compiler_and_decoder_agree_on_every_field():
    asserts = [
        f'_Static_assert(__builtin_offsetof(struct {s}, {m}) == {n}, "{s}.{m}");'
        for (s, m), n in OFFSETS.items()
    ]
    asserts += [f'_Static_assert(sizeof(struct {s}) == {n}, "sizeof {s}");' for s, n in SIZES.items()]
    asserts += [f'_Static_assert({name} == {n}, "{name}");' for name, n in ENUMS.items()]

    done = compile_with("\n".join(asserts) + "\nint f(void *ctx) { return 0; }\n")

    assert done.returncode == 0, done.stderr


def test_a_wrong_number_would_be_noticed():
    done = compile_with('_Static_assert(sizeof(struct conn) == 145, "x");\nint f(void *ctx) { return 0; }\n')

    assert done.returncode != 0
    assert "static_assert failed" in done.stderr or "static assertion failed" in done.stderr
