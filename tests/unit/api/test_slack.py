"""Threads that are given slack for their wake-ups, and those that are not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from spliffd.api.slack import SLACK_NS, together


def slack_ns(thread: int) -> int:
    return int(Path(f"/proc/{thread}/timerslack_ns").read_text())


def slack_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(slack_ns(threading.get_native_id())))
    thread.start()
    thread.join()
    return found[0]


def test_what_starts_within_has_slack_and_who_starts_it_has_not():
    mine = slack_ns(threading.get_native_id())
    assert 0 < mine < SLACK_NS
    with together():
        assert slack_of_a_new_thread() == SLACK_NS
    assert slack_ns(threading.get_native_id()) == mine
    assert slack_of_a_new_thread() == mine


def test_a_failure_within_takes_it_away_as_well():
    mine = slack_ns(threading.get_native_id())
    with pytest.raises(OSError, match="no socket"), together():
        raise OSError("no socket")
    assert slack_ns(threading.get_native_id()) == mine
