"""The Go programs' probes alone: the old calling convention, and a program under load as probes come and go."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import capstone
import pytest

from spliffd.kernel import links, records
from spliffd.stages.placements import probe_of
from spliffd.targets.inspector import inspect_fd
from tests.support import golang
from tests.support.lab import Lab, say
from tests.support.shared import lab_of_the_file
from tests.support.tracer import Tracer, streams

ROUNDS = 53
TOOLCHAINS = golang.toolchains()

pytestmark = pytest.mark.skipif(not TOOLCHAINS, reason=golang.WITHOUT)


lab = lab_of_the_file("go")


@pytest.fixture(params=sorted(TOOLCHAINS))
def version(request: pytest.FixtureRequest) -> str:
    return request.param


def inspected(path: Path) -> list[links.Probe]:
    fd = os.open(path, os.O_RDONLY)
    found = inspect_fd(fd, True)
    os.close(fd)
    assert found.state == "attach", found.reason
    return [probe_of(site) for site in found.sites]


def test_nothing_happens_to_a_program_whose_probes_come_and_go(lab: Lab, version: str):
    """Calls that begin without a probe and end with one, and the other way round, by the thousand."""
    path = golang.build(TOOLCHAINS[version], lab.folder, f"go{version}", "-ldflags=-s -w")
    probes = inspected(path)
    server = lab.start(
        path, "server", lab.certificate, lab.key, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert server.stdout is not None
    url = f"https://127.0.0.1:{int(server.stdout.readline())}"
    with Tracer(lab) as tracer:
        rounds = records_seen = 0
        clients = 0
        while rounds < ROUNDS:
            running = lab.start(
                path, "client", url, "211", "9001", ("h1", "h2")[clients % 2], "keep", stdout=subprocess.PIPE
            )
            while running.poll() is None and rounds < ROUNDS:
                attached = links.attach_library(tracer.programs, str(path), "go", probes)
                records_seen += len(tracer.read())
                attached.close()
                rounds += 1
            out, _ = running.communicate(timeout=60)
            assert running.returncode == 0
            assert len(out.splitlines()) == 211  # it compares the answers itself
            clients += 1
        assert records_seen > 0
        assert server.poll() is None
        # And with probes once more, everything is seen: nothing was left in a half-known state.
        with_probes = links.attach_library(tracer.programs, str(path), "go", probes)
        tracer.read()
        done = lab.run(path, "client", url, "53", "100", "h1", "close")
        assert done.returncode == 0
        seen = tracer.read()
        with_probes.close()
        requests = [data for data in streams(seen).values() if data.startswith(b"POST /n/")]
        assert len(requests) == 2 * 53
        say(
            f"Go {version}: {ROUNDS} times attached and detached under {clients} clients, {tracer.counters()}"
        )


OLD = r"""
package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"runtime"
)

// In assembly, so called as all of Go was before 1.17: see old_amd64.s.
func oldWrite(conn *tls.Conn, b []byte) (n int, err error)
func oldRead(conn *tls.Conn, b []byte) (n int, err error)
func oldHandshake(conn *tls.Conn) error
func oldClose(conn *tls.Conn) error

func main() {
	listener, _ := net.Listen("tcp", "127.0.0.1:0")
	done := make(chan bool)
	for n := 0; n < 101; n++ {
		go func(n int) {
			runtime.LockOSThread()
			near, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				os.Exit(1)
			}
			fmt.Println(n, near.LocalAddr())
			conn := tls.Client(near, &tls.Config{})
			oldHandshake(conn)
			text := []byte(fmt.Sprintf("question %d", n))
			oldWrite(conn, text)
			answer := []byte(fmt.Sprintf("answer to %d", n))
			oldRead(conn, answer)
			oldClose(conn)
			done <- true
		}(n)
	}
	for n := 0; n < 101; n++ {
		<-done
	}
}
"""
OLD_ASSEMBLY = """
#include "textflag.h"
TEXT ·oldWrite(SB), NOSPLIT, $0-56
	MOVQ b_len+16(FP), AX
	MOVQ AX, n+32(FP)
	MOVQ $0, b_base+8(FP)
	MOVQ $0, err+40(FP)
	RET
TEXT ·oldRead(SB), NOSPLIT, $0-56
	MOVQ b_len+16(FP), AX
	MOVQ AX, n+32(FP)
	MOVQ $0, b_base+8(FP)
	MOVQ $0, err+40(FP)
	RET
TEXT ·oldHandshake(SB), NOSPLIT, $0-24
	MOVQ $0, err+8(FP)
	RET
TEXT ·oldClose(SB), NOSPLIT, $0-24
	MOVQ $0, err+8(FP)
	RET
"""


def old_probes(path: Path) -> list[links.Probe]:
    """Entry and return of each of the functions above, by their symbols."""
    listed = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    places = {
        line.split()[2]: int(line.split()[0], 16) - 0x400000 for line in listed.splitlines() if " " in line
    }
    code = path.read_bytes()
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    probes = []
    for name, op in (("Write", "write"), ("Read", "read"), ("Handshake", "connect"), ("Close", "free")):
        at = places[f"main.old{name}.abi0"]
        ret = next(i.address for i in decoder.disasm(code[at : at + 99], at) if i.mnemonic == "ret")
        probes.append(links.Probe(at, op, "stack", False))
        if op != "free":
            probes.append(links.Probe(ret, op, "stack", False, placement="return"))
    return probes


def test_arguments_on_the_stack(lab: Lab, version: str):
    """Go before 1.17: goroutine from the thread's memory, arguments and results on the stack."""
    folder = lab.folder / f"old{version}"
    folder.mkdir()
    path = golang.build_folder(
        TOOLCHAINS[version], folder, {"main.go": OLD, "old_amd64.s": OLD_ASSEMBLY, "go.mod": "module main\n"}
    )
    with Tracer(lab) as tracer:
        attached = links.attach_library(tracer.programs, str(path), "go", old_probes(path))
        done = lab.run(path)
        assert done.returncode == 0
        seen = tracer.read()
        attached.close()
        counters = tracer.counters()
    local = dict(map(str.split, done.stdout.decode().splitlines()))
    found = {}
    for one in seen:
        if one.kind == records.DATA:
            found[one.payload.decode()] = f"{one.conn.local_address}:{one.conn.local_port}"
    assert found == {f"question {n}": where for n, where in local.items()} | {
        f"answer to {n}": where for n, where in local.items()
    }
    kinds = [one.kind for one in seen if one.kind in (records.HANDSHAKE, records.CLOSE)]
    assert (kinds.count(records.HANDSHAKE), kinds.count(records.CLOSE)) == (101, 101)
    assert "call_unmatched" not in counters
