"""The inspector as a process: what it has given up, and what it survives."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from spliffd.targets import inspector as process
from spliffd.targets.client import Inspector
from spliffd.targets.sites import (
    MAX_ANSWER,
    READY,
    Inspection,
    Request,
    Site,
    check,
    decode_inspection,
    encode_request,
)
from tests.unit.targets.conftest import library, openssl

NOBODY = 65534
ROOT = os.geteuid() == 0
DATA, PLACES = library(openssl())


@pytest.fixture
async def inspector():
    client = Inspector(NOBODY, NOBODY)
    yield client
    await client.close()
    assert client.pid == 0


def read(path):
    return Path(path).read_text(encoding="ascii")


def status_of(pid):
    lines = read(f"/proc/{pid}/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def test_it_answers_with_no_privilege_left(inspector, opened):
    inspection = await inspector.inspect(opened(DATA), "libssl.so.3", relocate=True)
    assert inspection.state == "attach"
    [site] = [site for site in inspection.sites if site.op == "read"]
    assert site.offset == PLACES["read_internal"]
    status = status_of(inspector.pid)
    if ROOT:
        assert status["Uid"].split() == status["Gid"].split() == [str(NOBODY)] * 4
        assert status["Groups"].strip() == ""
        assert int(status["CapBnd"], 16) == 0
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    # Not dumpable: its files in /proc belong to root, whoever it runs as.
    assert os.stat(f"/proc/{inspector.pid}/mem").st_uid == 0 or not ROOT
    limits = read(f"/proc/{inspector.pid}/limits")
    assert f"Max address space         {process.ADDRESS_SPACE} " in limits
    assert "Max file size             0 " in limits
    assert "Max core file size        0 " in limits
    # stdin, stdout, stderr and the socket.
    if ROOT:
        assert len(os.listdir(f"/proc/{inspector.pid}/fd")) == 4
    assert (inspector.starts, inspector.requests, inspector.crashes) == (1, 1, 0)


async def test_hostile_files_are_answered_and_the_next_one_too(inspector, opened):
    pid = 0
    for number, data in enumerate((b"", b"\x7fELF" + b"\xff" * 400, DATA[:1500], DATA)):
        inspection = await inspector.inspect(opened(data), "libssl.so.3", relocate=True)
        assert inspection.state == ("refused" if number < 3 else "attach")
        pid = pid or inspector.pid
        assert inspector.pid == pid
    assert (inspector.starts, inspector.crashes, inspector.timeouts) == (1, 0, 0)


async def test_a_file_is_asked_about_once_until_it_changes(inspector, tmp_path):
    path = tmp_path / "libssl.so.3"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDWR)
    try:
        first = await inspector.inspect(fd, str(path), relocate=True)
        assert await inspector.inspect(fd, str(path), relocate=True) is first
        entries = await inspector.inspect(fd, str(path), relocate=False)
        assert {site.placement for site in entries.sites} == {"entry"}
        assert (inspector.requests, inspector.cache_hits) == (2, 1)
        times = os.fstat(fd)
        await asyncio.sleep(0.02)
        os.write(fd, b"\x7fELG")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # hiding it does not help
        assert (await inspector.inspect(fd, str(path), relocate=True)).state == "refused"
    finally:
        os.close(fd)
    assert inspector.requests == 3


async def test_the_cache_is_bounded(opened):
    client = Inspector(NOBODY, NOBODY, cache_files=2)
    files = [opened(DATA + bytes(extra)) for extra in (1, 2, 3)]
    for fd in (*files, files[0], files[0]):
        await client.inspect(fd, "a", relocate=True)
    assert (client.requests, client.cache_hits) == (4, 1)
    await client.close()


async def test_one_that_hangs_is_killed_and_counted(opened):
    client = Inspector(NOBODY, NOBODY, answer_seconds=0.3)
    await client.inspect(opened(b"first"), "first", relocate=True)
    stopped = client.pid
    os.kill(stopped, signal.SIGSTOP)
    inspection = await client.inspect(opened(DATA), "/lib/libssl.so.3", relocate=True)
    assert inspection.state == "attach"
    assert client.pid != stopped
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
    assert (client.timeouts, client.crashes, client.starts) == (1, 0, 2)
    assert list(client.failures) == ["/lib/libssl.so.3: the inspector gave no answer within 0.3 s"]
    await client.close()


async def test_a_file_that_hangs_it_every_time_is_refused_and_remembered(opened, monkeypatch):
    client = Inspector(NOBODY, NOBODY, answer_seconds=0.2)
    start = client._start

    async def start_and_stop():
        link = await start()
        os.kill(client.pid, signal.SIGSTOP)
        return link

    monkeypatch.setattr(client, "_start", start_and_stop)
    fd = opened(DATA)
    inspection = await client.inspect(fd, "slow", relocate=True)
    assert (inspection.state, inspection.reason) == ("refused", "the inspector gave no answer within 0.2 s")
    assert client.timeouts == 2
    assert await client.inspect(fd, "slow", relocate=True) is inspection
    assert client.pid == 0
    await client.close()


async def test_one_that_was_killed_or_left_is_started_again(inspector, opened):
    await inspector.inspect(opened(b"first"), "first", relocate=True)
    os.kill(inspector.pid, signal.SIGKILL)
    inspection = await inspector.inspect(opened(DATA), "second", relocate=True)
    assert inspection.state == "attach"
    assert inspector.starts == 2


@pytest.mark.skipif(not ROOT, reason="only root can ask for root")
async def test_it_refuses_to_run_as_root_and_that_is_not_held_against_the_file(opened, capfd):
    client = Inspector(0, 0)
    fd = opened(DATA)
    for _ in range(2):
        inspection = await client.inspect(fd, "a", relocate=True)
        assert inspection.state == "refused"
        assert "the inspector does not start" in inspection.reason
    assert client.cache_hits == 0
    assert "must not run as root" in capfd.readouterr().err
    await client.close()


def answer_of(monkeypatch, opened, reading):
    """What the serving process answers when reading the file goes as ``reading`` does."""
    monkeypatch.setattr(process, "inspect_fd", reading)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        return decode_inspection(process._answer(encode_request(Request(True)), [opened(DATA)], theirs))


def test_a_file_that_kills_its_reader_costs_one_answer(monkeypatch, opened):
    inspection = answer_of(monkeypatch, opened, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert (inspection.state, inspection.reason) == ("refused", "reading it ended with SIGKILL")


def test_a_reader_cannot_answer_without_end(monkeypatch, opened):
    inspection = answer_of(monkeypatch, opened, lambda *_: Inspection("skipped", reason="x" * MAX_ANSWER))
    assert inspection.reason == "reading it ended without an answer"


def test_a_request_without_a_file_is_answered():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        inspection = decode_inspection(process._answer(encode_request(Request(True)), [], theirs))
    assert inspection.reason == "the request came without its file"


def test_it_leaves_when_idle_and_when_the_supervisor_is_gone(monkeypatch):
    monkeypatch.setattr(process, "IDLE_SECONDS", 0.01)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        with ours:
            process.serve(theirs)
            assert ours.recv(64) == READY
        monkeypatch.setattr(process, "IDLE_SECONDS", 60)
        with pytest.raises(BrokenPipeError):
            process.serve(theirs)


SITE = Site("SSL_free", 4096, False, "free", "none", "entry", "")


@pytest.mark.parametrize(
    ("inspection", "problem"),
    [
        (Inspection("attach", sites=[SITE]), ""),
        (Inspection("skipped", reason="no TLS"), ""),
        (Inspection("attach"), "state attach with 0 probe sites"),
        (Inspection("refused", sites=[SITE]), "state refused with 1 probe sites"),
        (Inspection("attach", sites=[SITE] * 97), "97 probe sites, at most 96 make sense"),
        (Inspection("attach", sites=[SITE] * 2), "the same probe site twice"),
        (Inspection("skipped", reason="x" * 1025), "a text of more than 1024 characters"),
        (
            Inspection("attach", sites=[Site("f", 9000, False, "free", "none", "entry", "")]),
            "a probe site outside the file",
        ),
    ],
)
def test_an_answer_is_not_believed_beyond_its_bounds(inspection, problem):
    assert check(inspection, 8192) == problem
