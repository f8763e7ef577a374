"""Memory that is let go: only what the files still have, and only after a rush."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from spliffd import resident

SMAPS = """\
55d0c8a00000-55d0c8a6f000 r--p 00000000 fe:01 1311 /usr/bin/python3.11
Rss:                 444 kB
Anonymous:             0 kB
55d0c8a6f000-55d0c8d40000 r-xp 0006f000 fe:01 1311 /usr/bin/python3.11
Rss:                2852 kB
Anonymous:             4 kB
55d0c8f5c000-55d0c8f5d000 r--p 0055b000 fe:01 1311 /usr/bin/python3.11
Rss:                   4 kB
Anonymous:             4 kB
55d0c8f5d000-55d0c909b000 rw-p 0055c000 fe:01 1311 /usr/bin/python3.11
Rss:                1272 kB
Anonymous:             0 kB
7f3b7c000000-7f3b7c021000 r--p 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
7f3b7d000000-7f3b7d400000 r--s 00000000 00:0f 99 /memfd:counters (deleted)
Rss:                   8 kB
Anonymous:             0 kB
7f3b7e000000-7f3b7e010000 r-xp 00001000 fe:01 1312 /usr/lib/x86_64-linux-gnu/libm.so.6
Rss:                  64 kB
Anonymous:             0 kB
7ffd1d7f7000-7ffd1d7f9000 r-xp 00000000 00:00 0 [vdso]
Rss:                   4 kB
Anonymous:             0 kB
"""


def test_only_pages_that_nobody_can_write_and_nobody_has_changed():
    assert resident.unchanged(SMAPS) == [
        (0x55D0C8A00000, 0x6F000, 444 << 10),
        (0x7F3B7E000000, 0x10000, 64 << 10),
    ]


PROGRAM = """
import grpc, hashlib
from spliffd import resident
from spliffd.pb import spliff_pb2
def kib():
    return int(open("/proc/self/statm").read().split()[1]) * 4
before = kib()
freed = resident.let_go() >> 10
assert freed > 8192, freed
assert before - kib() > freed // 2, (before, kib(), freed)
exchange = spliff_pb2.Exchange(id=7, request=spliff_pb2.Request(path="/"))
assert spliff_pb2.Exchange.FromString(exchange.SerializeToString()) == exchange
print(hashlib.sha256(b"as ever").hexdigest())
"""


def test_a_process_goes_on_as_ever_with_less():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "8961d25561684e3942585c124d550d1542f0ef0ff6e12fed63cd23fa34c97ae8\n"


async def test_once_after_each_rush(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resident, "CALM_SECONDS", 0.01)
    calls = []
    calm = asyncio.Event()

    def let_go() -> int:
        calls.append(1)
        calm.set()
        return 0

    monkeypatch.setattr(resident, "let_go", let_go)
    ebb = resident.Ebb()
    ebb.came(resident.MUCH - 1)
    await asyncio.sleep(0.03)
    assert calls == []
    for rush in (1, 2):
        for _ in range(7):
            ebb.came(resident.MUCH)
        await asyncio.wait_for(calm.wait(), 30)
        calm.clear()
        await asyncio.sleep(0.03)
        assert len(calls) == rush
