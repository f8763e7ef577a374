"""When a Flush can be answered: not before its records are parsed, nor while any of them may wait."""

from __future__ import annotations

from spliffd.worker.flushes import PATIENCE_NS, Flushes


def test_nothing_asked_nothing_answered():
    assert Flushes().answer((0, 100), 5, waiting=False) == 0


def test_the_answer_comes_when_the_records_are_parsed():
    flushes = Flushes()
    flushes.ask(1, (0, 96))
    assert flushes.answer((0, 88), 5, waiting=False) == 0
    assert flushes.answer((0, 96), 6, waiting=False) == 1
    assert not flushes


def test_what_waits_is_waited_for_but_not_for_ever():
    flushes = Flushes()
    flushes.ask(1, (0, 96))
    assert flushes.answer((0, 96), 7, waiting=True) == 0
    assert flushes.answer((0, 200), 7 + PATIENCE_NS - 1, waiting=True) == 0
    assert flushes.answer((0, 200), 7 + PATIENCE_NS, waiting=True) == 1

    flushes.ask(2, (0, 200))
    assert flushes.answer((0, 200), 8, waiting=True) == 0
    assert flushes.answer((0, 200), 9, waiting=False) == 2


def test_a_later_ring_is_not_there_yet_and_an_earlier_one_is_over():
    flushes = Flushes()
    flushes.ask(1, (1, 8))
    assert flushes.answer((0, 5000), 5, waiting=False) == 0
    assert flushes.answer((2, 0), 6, waiting=False) == 1


def test_questions_are_answered_in_order_each_with_its_own_patience():
    flushes = Flushes()
    flushes.ask(1, (0, 8))
    flushes.ask(2, (0, 16))
    flushes.ask(3, (0, 24))
    assert flushes.answer((0, 8), 5, waiting=True) == 0
    assert flushes.answer((0, 16), 100, waiting=True) == 0
    assert flushes.answer((0, 16), 5 + PATIENCE_NS, waiting=True) == 1
    assert flushes.answer((0, 16), 100 + PATIENCE_NS, waiting=True) == 2
    assert flushes.answer((0, 16), 101 + PATIENCE_NS, waiting=False) == 0
    flushes.forget()
    assert not flushes
