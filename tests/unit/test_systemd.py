"""spliffd.systemd against a socket that plays systemd."""

import os
import socket
import time

import pytest

from spliffd.systemd import MAX_STATUS, SEND_SECONDS, Notifier, watchdog_interval


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The service manager's end: returns a function that reads the next datagram."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield lambda: listener.recv(65536).decode()


@pytest.fixture
def notifier(manager):
    notifier = Notifier()
    yield notifier
    notifier._library.socket.close()


def test_ready_with_status(manager, notifier):
    notifier.ready("capturing, 3 libraries")
    assert manager() == "READY=1\nSTATUS=capturing, 3 libraries"


def test_ready_without_status(manager, notifier):
    notifier.ready()
    assert manager() == "READY=1"


def test_status_is_utf8(manager, notifier):
    notifier.status("correlated 99.9 % – Good")
    assert manager() == "STATUS=correlated 99.9 % – Good"


def test_status_cannot_smuggle_an_assignment(manager, notifier):
    notifier.status("fine\nSTOPPING=1")
    assert manager() == "STATUS=fine STOPPING=1"


def test_status_is_cut(manager, notifier):
    notifier.status("x" * 10_007)
    assert manager() == "STATUS=" + "x" * MAX_STATUS


def test_reload_carries_a_monotonic_time(manager):
    notifier = Notifier(clock_ns=lambda: 7_000_001_999)
    notifier.reloading()
    assert manager() == "RELOADING=1\nMONOTONIC_USEC=7000001\nSTATUS=reloading"
    notifier._library.socket.close()


def test_default_clock_is_monotonic(manager, notifier):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading("")
    told = int(manager().split("MONOTONIC_USEC=")[1])
    assert before <= told <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_stopping_and_watchdog(manager, notifier):
    notifier.stopping()
    notifier.watchdog()
    assert manager() == "STOPPING=1\nSTATUS=draining"
    assert manager() == "WATCHDOG=1"


def test_without_systemd_nothing_is_opened(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    open_before = os.listdir("/proc/self/fd")
    notifier = Notifier()
    notifier.ready("x")
    notifier.watchdog()
    assert os.listdir("/proc/self/fd") == open_before


def test_a_manager_that_went_away_does_not_stop_the_daemon(monkeypatch, tmp_path):
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        notifier = Notifier()
    notifier.ready("x")
    notifier._library.socket.close()


def test_a_manager_that_does_not_read_does_not_hang_the_daemon(manager, notifier):
    assert notifier._library.socket.gettimeout() == SEND_SECONDS
    started = time.monotonic()
    for _ in range(1009):
        notifier._library.socket.settimeout(0.001)
        notifier.watchdog()
    assert time.monotonic() - started < 30
    assert manager() == "WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "4711"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "4712"}, None),
        ({"WATCHDOG_USEC": "0", "WATCHDOG_PID": "4711"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval(environ, seconds):
    assert watchdog_interval(environ, pid=4711) == seconds
