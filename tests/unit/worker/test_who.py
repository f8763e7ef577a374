"""Facts of processes: asked for once for each program, waited for while there is time, filled in later else."""

from __future__ import annotations

import pytest

from spliffd import ipc
from spliffd.config import Access
from spliffd.correlation.facts import ConnectionFacts
from spliffd.protocols.masking import Masker
from spliffd.worker import who
from spliffd.worker.who import Who

MASKER = Masker(b"k" * ipc.MASK_KEY_BYTES, Access().mask_headers, Access().mask_fields)


def facts(pid: int = 7, start: int = 70) -> ipc.ProcessFacts:
    return ipc.ProcessFacts(
        pid, start, "/usr/bin/curl", "curl -u a:b", "ann", "/user", "a.service", "", ancestors=[1]
    )


class Supervisor:
    """Answers while it has answers; says that there is no more time when it has none."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.answers: list[ipc.ProcessFacts | None] = []
        self.busy = False
        self.open: list[ConnectionFacts] = []
        self.who = Who(self.ask, self.listen)

    def ask(self, question: ipc.WhoIs) -> bool:
        if not self.busy:
            self.asked.append((question.pid, question.start_ns))
        return not self.busy

    def listen(self) -> bool:
        if not self.answers:
            return False
        answer = self.answers.pop(0)
        if answer is not None:
            self.who.learn(answer, MASKER, self.open)
        return True


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


def filled(supervisor: Supervisor, exec_id: int = 1, pid: int = 7) -> ConnectionFacts:
    made = ConnectionFacts()
    supervisor.open = [made]
    supervisor.who.fill(pid, pid * 10, exec_id, made)
    return made


def test_the_answer_is_waited_for_and_asked_for_once(supervisor):
    supervisor.answers = [None, facts()]
    assert filled(supervisor).exe == "/usr/bin/curl"
    assert filled(supervisor).user == "ann"
    assert supervisor.asked == [(7, 70)]


def test_another_program_of_the_process_is_asked_for_anew(supervisor):
    supervisor.answers = [facts(), facts()]
    filled(supervisor, 1)
    filled(supervisor, 2)
    assert supervisor.asked == [(7, 70)] * 2


def test_without_time_the_facts_come_later_and_nobody_is_waited_for_until_they_do(supervisor):
    late = filled(supervisor)
    assert late.exe == ""
    supervisor.answers = [facts(8, 80)]
    assert filled(supervisor, pid=8).exe == ""  # not listened to: the one before took too long
    supervisor.who.learn(facts(), MASKER, [late])
    assert (late.exe, late.unit) == ("/usr/bin/curl", "a.service")
    supervisor.answers = [facts(9, 90)]
    assert filled(supervisor, pid=9).exe == "/usr/bin/curl"


def test_a_busy_supervisor_is_asked_again_by_the_next_connection(supervisor):
    supervisor.busy = True
    assert filled(supervisor).exe == ""
    supervisor.busy, supervisor.answers = False, [facts()]
    assert filled(supervisor).exe == "/usr/bin/curl"


def test_an_answer_that_never_comes_is_given_up(supervisor, monkeypatch):
    times = [share * who.FACTS_SECONDS for share in (0, 0.4, 0.8, 1.2)]
    monkeypatch.setattr(who.time, "monotonic", lambda: times.pop(0))
    supervisor.answers = [None] * 5
    assert filled(supervisor).exe == ""
    assert len(supervisor.answers) == 2


def test_the_table_is_bounded(supervisor):
    supervisor.who.learn(facts(), MASKER, [])
    for pid in range(10, 10 + who.KNOWN_PROCESSES):
        supervisor.who.learn(facts(pid, pid * 10), MASKER, [])
        filled(supervisor, pid=pid)
    supervisor.asked.clear()
    filled(supervisor)
    assert supervisor.asked == [(7, 70)]
