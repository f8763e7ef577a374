"""Process and timing: the true flow always fits, and what does not fit alone is nobody's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_records import flow

from spliffd.correlation.timing import PROMPT_NS, STILL_NS, Talk, choose, fits
from spliffd.kernel.flows import SEEDED, Hop

MS = 1_000_000
OPENED = 1_000 * MS
CLIENT, SERVER = 1, 2


def talk(**changes) -> Talk:
    """A client that sent 1,000 bytes and received 50,000, beginning 30 ms after its flow was opened."""
    values = {
        "first_ns": OPENED + 30 * MS, "last_ns": OPENED + 80 * MS, "sizes": (1000, 50_000), "calls": (1, 4),
        "role": "client", "whole": True,
    } | changes  # fmt: skip
    return Talk(**values)


def seen(packets=(20, 60), sizes=(4_000, 60_000), **changes):
    """Its flow, as a packet hook saw it."""
    hop = Hop(1, 2, *packets, *sizes, OPENED)
    values = {"first_ns": OPENED, "last_ns": OPENED + 80 * MS, "hops": (hop,)} | changes
    return flow(**values)


def unseen(**changes):
    """Its flow without packet hooks, while it lives."""
    return flow(**({"first_ns": OPENED, "last_ns": OPENED} | changes))


def test_the_usual_flow_fits():
    assert fits(talk(), seen())
    assert fits(talk(), unseen())
    assert fits(talk(), unseen(closed_ns=OPENED + 90 * MS, tcp_sent=2_000, tcp_received=55_000))


@pytest.mark.parametrize(
    ("why", "other"),
    [
        ("the other end is the client", seen(role=SERVER)),
        ("opened after the first plaintext", seen(first_ns=OPENED + 31 * MS)),
        ("closed before the first plaintext", seen(closed_ns=OPENED + 29 * MS)),
        ("sent less than the plaintext", seen(sizes=(1_800, 60_000))),
        ("received less than the plaintext", seen(sizes=(4_000, 52_000))),
        ("received far more than TLS adds", seen(packets=(20, 200), sizes=(4_000, 200_000))),
        ("sent far more than TLS adds", seen(packets=(90, 60), sizes=(90_000, 60_000))),
        (
            "at its end it had sent less",
            unseen(closed_ns=OPENED + 90 * MS, tcp_sent=900, tcp_received=55_000),
        ),
        ("bytes unknown, opened long before", unseen(first_ns=OPENED - PROMPT_NS)),
    ],
)
def test_what_speaks_against_a_flow(why, other):
    assert not fits(talk(), other), why


def test_what_cannot_be_compared_does_not_speak_against_it():
    moved_on = OPENED + 80 * MS + STILL_NS + 1
    assert fits(talk(), seen(sizes=(4_000, 900_000), last_ns=moved_on))  # the next answer is on its way
    assert fits(talk(whole=False), seen(sizes=(4_000, 900_000)))  # what went before was not seen
    late_hook = seen()._replace(hops=(Hop(1, 2, 2, 2, 300, 300, OPENED + 70 * MS),))
    assert fits(talk(), late_hook)
    seeded = unseen(flags=SEEDED, first_ns=OPENED + 500 * MS, role=0)
    assert fits(talk(), seeded)
    assert fits(talk(role=""), seen(role=SERVER))
    assert fits(talk(), seen(role=0))


def test_one_that_fits_alone_is_chosen():
    mine, other = seen(), seen(role=SERVER)
    assert choose(talk(), [(1, mine), (2, other)], []) == (1, mine)
    assert choose(talk(), [], []) is None
    assert choose(talk(), [(2, other)], []) is None


def test_two_that_fit_are_nobodys():
    assert choose(talk(), [(1, seen()), (2, seen())], []) is None
    assert choose(talk(), [(1, unseen()), (2, unseen())], []) is None


def test_a_flow_that_fits_two_connections_is_nobodys():
    assert choose(talk(), [(1, seen())], [talk()]) is None
    assert choose(talk(), [(1, seen())], [talk(role="server")]) == (1, seen())


def test_bytes_tell_two_downloads_apart():
    small, large = talk(), talk(sizes=(1000, 5_000_000), calls=(1, 400))
    flows = [(1, seen()), (2, seen(packets=(700, 4000), sizes=(40_000, 5_300_000)))]
    assert choose(small, flows, [large]) == flows[0]
    assert choose(large, flows, [small]) == flows[1]


sizes = st.one_of(st.integers(0, 3_000), st.integers(0, 5_000_000))


@st.composite
def connection_and_its_flow(draw):
    """Plaintext as TLS and TCP would carry it: any fragments, headers, handshake, repeats, and what follows."""
    plain = (draw(sizes), draw(sizes))
    calls, packets, on_wire, payloads = [], [], [], []
    for size in plain:
        n = draw(st.integers(1, 50)) if size else 0
        fragments = n + size // draw(st.integers(512, 16_384))
        payload = size + fragments * draw(st.integers(22, 85)) if size else 0
        payload += draw(st.integers(300, 20_000))  # the handshake
        count = max(1, payload // draw(st.sampled_from([500, 1448, 64_000])))
        again = payload // draw(st.sampled_from([10, 50, 10_000]))
        empty = draw(st.integers(1, 300))
        headers = draw(st.integers(40, 154))
        calls.append(n)
        payloads.append(payload)
        packets.append(count + empty)
        on_wire.append(payload + again + (count + empty) * headers)
    first = OPENED + draw(st.integers(0, 1_000)) * MS
    last = first + draw(st.integers(0, 1_000)) * MS
    role = draw(st.sampled_from(["client", "server", ""]))
    said = Talk(first, last, plain, tuple(calls), role, draw(st.booleans()))
    more = draw(st.booleans())
    moved = last + STILL_NS + 1 if more else last
    hop = Hop(1, 2, *packets, *(n + more * 1_000_000 for n in on_wire), OPENED)
    closed = draw(st.sampled_from([0, moved + MS]))
    if closed and more:
        moved = last  # what came after it was over is no plaintext any more
        hop = Hop(1, 2, *packets, *on_wire, OPENED)
    known = {"tcp_sent": payloads[0], "tcp_received": payloads[1]} if closed else {}
    hops = (hop,) if draw(st.booleans()) else ()
    which = draw(st.sampled_from([0, {"client": CLIENT, "server": SERVER, "": CLIENT}[role]]))
    return said, flow(first_ns=OPENED, last_ns=moved, closed_ns=closed, role=which, **known)._replace(
        hops=hops
    )


@given(connection_and_its_flow())
def test_the_true_flow_always_fits(pair):
    said, true = pair
    assert fits(said, true)
    assert choose(said, [(1, true)], []) == (1, true)


@given(st.lists(connection_and_its_flow(), min_size=1, max_size=5), st.integers(0, 4), st.integers(0, 4))
def test_it_never_claims_what_another_could_claim_as_well(pairs, one, other):
    """Whatever the flows: the chosen one, seen twice or wanted by another connection like this, is nobody's."""
    said = pairs[one % len(pairs)][0]
    flows = [(cookie, true) for cookie, (_, true) in enumerate(pairs)]
    found = choose(said, flows, [])
    if found is None:
        return
    assert found[1] == pairs[found[0]][1]
    assert choose(said, [*flows, (99, found[1])], []) is None
    assert choose(said, flows, [said]) is None
    # And the true flow is always among those that fit: only it can have been alone.
    assert found[0] == one % len(pairs) or found[1] == pairs[one % len(pairs)][1]
