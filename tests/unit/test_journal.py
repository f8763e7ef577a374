"""spliffd.journal: events in, lines or journald datagrams out."""

import io
import os
import re
import socket
import struct

import pytest

from spliffd import journal
from spliffd.errors import HostError


@pytest.fixture
def lines():
    """Configures the text log; returns a function that gives what was written so far."""
    stream = io.StringIO()
    journal.configure(stream=stream, environ={})
    yield stream.getvalue
    journal.set_debug(False)


def parse(datagram: bytes) -> dict[str, str]:
    """Reads journald's native protocol, as journald does."""
    fields = {}
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", datagram[:8])
            value, datagram = datagram[8 : 8 + size], datagram[9 + size :]
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journald(tmp_path):
    """A socket that plays journald, and a stderr that JOURNAL_STREAM names; returns (read, stderr)."""
    path = str(tmp_path / "journal")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
        open(tmp_path / "stderr", "w+", encoding="utf-8") as stderr,
    ):
        listener.bind(path)
        listener.settimeout(2)
        status = os.fstat(stderr.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        sinks = []
        original = journal.JournalSink

        def remember(*args):
            sinks.append(original(*args))
            return sinks[-1]

        journal.JournalSink = remember
        journal.configure(stream=stderr, environ=environ, journal_socket=path)
        journal.JournalSink = original
        yield lambda: parse(listener.recv(1 << 20)), stderr, listener
        for sink in sinks:
            sink.close()


def test_a_line_of_text(lines):
    journal.logger("interfaces").info("attached", interface="eth0", hook="xdp", why="native XDP")
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.\d{3} info    interfaces: attached interface=eth0 hook=xdp why="native XDP"\n',
        lines(),
    )


def test_debug_is_switched_for_loggers_that_exist_already(lines):
    log = journal.logger("worker")
    log.debug("one")
    journal.set_debug(True)
    log.debug("two")
    journal.set_debug(False)
    log.debug("three")
    assert [line.rsplit(" ", 1)[1] for line in lines().splitlines()] == ["two"]


def test_control_characters_do_not_reach_the_terminal(lines):
    journal.logger("targets").warning("odd name", path="/tmp/\x1b[2Jx\ny\u202e")
    assert "\x1b" not in lines()
    assert lines().count("\n") == 1
    assert r"path=/tmp/\x1b[2Jx\ny\u202e" in lines()


@pytest.mark.parametrize("value", [b"secret", bytearray(b"secret"), memoryview(b"secret")])
def test_captured_bytes_are_written_as_their_length(lines, value):
    journal.logger("worker").warning("refused", record=value)
    assert 'record="<6 bytes>"' in lines()
    assert "secret" not in lines()


def test_bytes_inside_a_container_are_not_shown(lines):
    journal.logger("worker").warning("refused", frames=[b"secret"], row={"body": "secret"})
    assert "secret" not in lines()
    assert "frames=<list> row=<dict>" in lines()


def test_an_exception_that_quotes_its_input_is_named_only(lines):
    try:
        int("secret")
    except ValueError:
        journal.logger("worker").error("parser failed", exc_info=True)
    assert "secret" not in lines()
    assert "error=ValueError where=" in lines()
    assert "test_journal.py:" in lines()


def test_errors_of_the_kernel_and_our_own_are_told(lines):
    log = journal.logger("api")
    log.error("cannot listen", reason=PermissionError(13, "Permission denied", "/run/x"))
    log.error("cannot run", reason=HostError("no BTF", "boot another kernel"))
    assert "PermissionError: [Errno 13] Permission denied: '/run/x'" in lines()
    assert "HostError: no BTF – boot another kernel" in lines()


def test_a_closed_standard_error_does_not_stop_the_daemon():
    stream = io.StringIO()
    journal.configure(stream=stream, environ={})
    stream.close()
    journal.logger("api").info("still here")


def test_an_entry_in_the_journal(journald):
    receive, stderr, _ = journald
    journal.logger("api").warning("watcher is slow", watcher=7, lost=1009)
    assert receive() == {
        "MESSAGE": "watcher is slow",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "spliffd",
        "SPLIFF_STAGE": "api",
        "SPLIFF_WATCHER": "7",
        "SPLIFF_LOST": "1009",
    }
    assert os.fstat(stderr.fileno()).st_size == 0


def test_values_with_newlines_are_framed_by_length(journald):
    receive, _, _ = journald
    journal.logger("supervisor").error("two\nlines", note="a\nMESSAGE=forged")
    fields = receive()
    assert fields["MESSAGE"] == "two\nlines"
    assert fields["SPLIFF_NOTE"] == "a\nMESSAGE=forged"


def test_long_values_and_many_fields_are_cut_and_say_so(journald):
    receive, _, _ = journald
    journal.logger("worker").info("x" * 100_003, **{f"f{n}": n for n in range(101)})
    fields = receive()
    assert fields["MESSAGE"] == "x" * journal.MAX_VALUE + "… (100003 characters)"
    assert fields["SPLIFF_FIELDS_LEFT_OUT"] == str(101 + 2 - journal.MAX_FIELDS)


def test_what_journald_does_not_take_goes_to_standard_error(journald):
    _, stderr, listener = journald
    listener.close()
    journal.logger("worker").info("nobody listens")
    stderr.seek(0)
    assert stderr.read().endswith("worker: nobody listens\n")


@pytest.mark.parametrize("value", ["", "x", "1:2", ":", "1:"])
def test_another_stream_is_not_the_journal(tmp_path, value):
    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        assert not journal.is_journal(stream, {"JOURNAL_STREAM": value})
    assert not journal.is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
