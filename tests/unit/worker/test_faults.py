"""Flow information that comes late on purpose."""

from __future__ import annotations

import pytest

from spliffd.correlation.retry import NEVER
from spliffd.errors import UsageError
from spliffd.kernel.flows import Hop
from spliffd.worker import faults

MS = 1_000_000
HOPS = (Hop(1, 2, 3, 4, 5, 6, 7),)


def test_each_socket_is_late_by_itself():
    now = [1_000 * MS]
    look, _ = faults.late(lambda cookie: HOPS, 20 * MS, lambda: now[0])
    assert look(1) == ()
    now[0] += 19 * MS
    assert (look(1), look(2)) == ((), ())
    now[0] += MS
    assert (look(1), look(2)) == (HOPS, ())
    now[0] += 19 * MS
    assert (look(1), look(2)) == (HOPS, HOPS)


def test_a_glance_is_no_question():
    now = [0]
    look, glance = faults.late(lambda cookie: HOPS, 20 * MS, lambda: now[0])
    assert glance(1) == ()
    now[0] += 30 * MS
    assert (glance(1), look(1), glance(1)) == ((), (), ())
    now[0] += 20 * MS
    assert (glance(1), look(1)) == (HOPS, HOPS)


def test_never_is_never():
    look, _ = faults.late(lambda cookie: HOPS, faults.flow_delay("never"), lambda: NEVER - 1)
    assert look(1) == look(1) == ()


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(faults, "MAX_SOCKETS", 3)
    now = [0]
    look, _ = faults.late(lambda cookie: HOPS, 5, lambda: now[0])
    for cookie in range(4):
        look(cookie)
    now[0] = 9
    assert [bool(look(cookie)) for cookie in (1, 2, 3, 0)] == [True, True, True, False]


@pytest.mark.parametrize("text", ["", "-1", "1.5", "soon", "²"])
def test_what_is_no_delay_is_refused(text):
    with pytest.raises(UsageError):
        faults.flow_delay(text)
    assert faults.flow_delay("7") == 7 * MS
