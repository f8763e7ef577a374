"""WebSockets that wait for their messages are bounded in number and bytes."""

from __future__ import annotations

from spliffctl.export.upgrades import Upgrades, is_upgrade
from spliffctl.parts import Body
from spliffd.pb import spliff_pb2 as pb

NOTHING = (Body(), Body())


def opened(key: int) -> pb.Exchange:
    return pb.Exchange(id=key, part_key=key, response=pb.Response(status=101))


def test_only_an_exchange_that_can_be_found_again_waits():
    assert is_upgrade(opened(1))
    assert not is_upgrade(opened(0))
    assert not is_upgrade(pb.Exchange(part_key=1, response=pb.Response(status=200)))


def test_the_oldest_makes_room():
    held = Upgrades(capacity=2)
    assert held.add(opened(1), NOTHING) == held.add(opened(2), NOTHING) == []
    (first,) = held.add(opened(3), NOTHING)
    assert first.exchange.id == 1
    assert held.message(pb.Message(exchange_part_key=1)) == []
    assert held.strays == 1
    assert [one.exchange.id for one in held.drain()] == [2, 3]


def test_bytes_are_bounded():
    held = Upgrades(max_bytes=10_000)
    held.add(opened(1), NOTHING)
    held.add(opened(2), NOTHING)
    assert held.message(pb.Message(exchange_part_key=2, data=bytes(4000))) == []
    (first,) = held.message(pb.Message(exchange_part_key=1, data=bytes(7000)))
    assert (first.exchange.id, len(first.messages)) == (1, 1)
    (second,) = held.message(pb.Message(exchange_part_key=2, data=bytes(7000)))
    assert (second.exchange.id, len(second.messages)) == (2, 2)


def test_an_exchange_sent_again_takes_the_place_of_the_first():
    held = Upgrades()
    held.add(opened(1), NOTHING)
    held.message(pb.Message(exchange_part_key=1))
    again = opened(1)
    again.duration_ns = 5
    assert held.add(again, NOTHING) == []
    (only,) = held.drain()
    assert (only.exchange.duration_ns, len(only.messages)) == (5, 1)
