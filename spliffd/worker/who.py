"""Whose connections these are: what is known of processes, asked for once and waited for a little.

Takes the process of a new connection and fills in its facts; asks the supervisor (``ask``) once for each
program that a process becomes, and listens for the answer (``listen``) while that loses nothing. What comes
later is filled into the connections that are open then. Bounded; does no I/O but through those two.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from spliffd import ipc
from spliffd.correlation.facts import ConnectionFacts
from spliffd.protocols.mask_command import mask_command
from spliffd.protocols.masking import Masker

KNOWN_PROCESSES: Final = 4096
"""Processes whose facts are kept: far more than ones that speak TLS at a time; 1 KiB each."""

FACTS_SECONDS: Final = 2.0
"""How long a process that speaks for the first time is waited for while the supervisor looks it up (0.3 ms
on an idle host, 0.1 s while it verifies or attaches, beside others that want the processors more than half a
second): a short-lived client's only exchange is over by then, and filters need to know whose."""


class Who:
    """``ask`` returns whether the question was sent; ``listen`` takes what comes, False: no time for more.

    After an answer that took too long none is waited for until one comes: the ring must not fill.
    """

    def __init__(self, ask: Callable[[ipc.WhoIs], bool], listen: Callable[[], bool]) -> None:
        self._ask = ask
        self._listen = listen
        self._known: OrderedDict[tuple[int, int], tuple[int, ipc.ProcessFacts | None]] = OrderedDict()
        """By pid and start: the program (exec_id) that was asked for, and the answer."""
        self._patient = True

    def fill(self, pid: int, start_ns: int, exec_id: int, facts: ConnectionFacts) -> None:
        """Fills in what is known of a process, or will be within ``FACTS_SECONDS``."""
        process = (pid, start_ns)
        known_exec, known = self._known.get(process, (-1, None))
        if known_exec == exec_id:
            if known is not None:
                _fill(facts, known)
            return
        while len(self._known) >= KNOWN_PROCESSES:
            self._known.popitem(last=False)
        if not self._ask(ipc.WhoIs(pid, start_ns)):
            return
        self._known[process] = (exec_id, None)
        deadline = time.monotonic() + FACTS_SECONDS
        while self._patient and self._known[process][1] is None:
            in_time = self._listen()
            if self._known[process][1] is None and (not in_time or time.monotonic() > deadline):
                self._patient = False

    def learn(self, known: ipc.ProcessFacts, masker: Masker, open_now: Iterable[ConnectionFacts]) -> None:
        """The answer; ``open_now`` are the facts of the process's connections."""
        known.cmdline = mask_command(known.cmdline, masker)
        process = (known.pid, known.start_ns)
        exec_id, _ = self._known.get(process, (-1, None))
        self._known[process] = (exec_id, known)
        self._patient = True
        for facts in open_now:
            _fill(facts, known)


def _fill(facts: ConnectionFacts, known: ipc.ProcessFacts) -> None:
    facts.exe, facts.cmdline, facts.user = known.exe, known.cmdline, known.user
    facts.cgroup, facts.unit, facts.container_id = known.cgroup, known.unit, known.container
    facts.ancestors = known.ancestors
    facts.prefix = None
