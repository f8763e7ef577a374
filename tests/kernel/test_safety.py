"""Probes come and go under programs at work: every answer is what it would be without them, none crashes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from spliffd.kernel import links, records
from spliffd.stages.placements import probe_of
from spliffd.targets.inspector import inspect_fd
from spliffd.targets.sites import Inspection
from tests.support import golang
from tests.support.lab import PYTHON, Lab, say, stop, wait_for
from tests.support.servers import Nginx
from tests.support.speakers import NODE_SERVER, serve
from tests.support.tracer import Tracer

ROUNDS = int(os.environ.get("SPLIFF_SAFETY_ROUNDS", "13"))
"""53 by hand: as long as the kernel takes to detach."""
SIZE = 9001

LOAD = r"""
import http.client, json, ssl, sys, threading
context = ssl._create_unverified_context()
done, errors, over = {}, [], threading.Event()
def ask(port, path, wanted):
    while not over.is_set():
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        for _ in range(23):
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read()
            except Exception as error:
                return errors.append(f"{port}: {type(error).__name__} {error}")
            if (answer.status, body) != (200, wanted):
                return errors.append(f"{port}: {answer.status} {body[:80]}")
            done[port] += 1
        connection.close()
threads = []
for port, path, wanted in json.loads(sys.argv[1]):
    done[port] = 0
    for _ in range(2):
        threads.append(threading.Thread(target=ask, args=(port, path, wanted.encode())))
for thread in threads:
    thread.start()
print("ready", flush=True)
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
print(json.dumps([done, errors]))
"""
"""JSON list of [port, path, body]: asks all, compares each answer, until its input ends; prints counts and errors."""


def inspected(path: Path) -> Inspection:
    fd = os.open(path, os.O_RDONLY)
    try:
        found = inspect_fd(fd, relocate=True)
    finally:
        os.close(fd)
    assert found.state == "attach", found
    return found


def test_probes_come_and_go_under_load():
    with Lab("safety") as lab, Tracer(lab) as tracer:
        nginx = Nginx(lab)
        shutil.copy("/usr/bin/node", lab.folder / "node")
        node, node_port = serve(
            lab, lab.folder / "node", "-e", NODE_SERVER, "{port}", lab.certificate, lab.key
        )
        asked = [(nginx.port, "/hello", "hello world\n"), (node_port, "/hello", "hello\n")]
        servers = {"nginx": nginx.process, "node": node}
        files = [lab.libraries / "libssl.so.3", lab.folder / "node"]
        for version, toolchain in golang.toolchains().items():
            program = golang.build(toolchain, lab.folder, f"go{version}", "-ldflags=-s -w")
            process = lab.start(program, "server", lab.certificate, lab.key, stdout=subprocess.PIPE)
            assert process.stdout is not None
            nobody = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
            asked.append((int(process.stdout.readline()), f"/?size={SIZE}", f"{nobody} {'s' * SIZE}"))
            servers[f"Go {version}"] = process
            files.append(program)
        found = [(path, inspected(path)) for path in files]
        links.close_all(tracer.attached[-1:])  # libssl, which comes and goes like the others here

        load = lab.start(PYTHON, "-c", LOAD, json.dumps(asked), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert load.stdout is not None
        assert load.stdout.readline() == b"ready\n"
        seen = 0
        for number in range(ROUNDS):
            attached = [
                links.attach_library(
                    tracer.programs, str(path), one.library, [probe_of(site) for site in one.sites]
                )
                for path, one in found
            ]
            wanted = {process.pid for process in servers.values()}

            def all_seen(wanted: set[int] = wanted) -> bool:
                nonlocal seen
                data = [record for record in tracer.read() if record.kind == records.DATA]
                seen += len(data)
                wanted -= {record.conn.tgid for record in data}
                return not wanted

            wait_for(all_seen, 30, f"plaintext of all servers in round {number}")
            links.close_all(attached)
            tracer.read()
        for name, process in servers.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}"
        out, _ = load.communicate(b"", 90)
        done, errors = json.loads(out)
        assert errors == []
        assert all(done.values())
        for process in servers.values():
            assert stop(process) in (0, -15)
        say(f"{ROUNDS} rounds, {seen} records seen, requests of {list(servers)}: {list(done.values())}")
