"""Plaintext against the TLS records that held it: sessions sealed record by record, and what the sums say of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.correlation.accounted import TICKET, agrees, data_sent, unseen
from spliffd.correlation.facts import ConnectionFacts
from spliffd.kernel.flows import RecordSide

GCM = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
AES_256 = "TLS_AES_256_GCM_SHA384"


def session(version: str = "TLSv1.3", cipher: str = AES_256) -> ConnectionFacts:
    facts = ConnectionFacts()
    facts.tls_version, facts.cipher = version, cipher
    return facts


def side(
    *inner: int, each: int = 17, flight: int = 0, client: bool = False, begun: bool = True
) -> RecordSide:
    """A direction whose records hold so many bytes; the first ``flight`` before the client encrypted."""
    lengths = [size + each for size in inner]
    first = sum(length << 16 * at for at, length in enumerate(lengths[flight : flight + 4]))
    return RecordSide(
        1 << 63, sum(lengths), sum(lengths[:flight]), first if begun else 0, len(lengths), flight,
        lengths[-1] if lengths else 0, begun, client,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("version", "cipher", "each"),
    [
        ("TLSv1.2", GCM, 24),
        ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_256_CCM", 24),
        ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8", 16),
        ("TLSv1.2", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", 16),
        ("TLSv1.3", AES_256, 17),
        ("TLSv1.3", "TLS_AES_128_CCM_8_SHA256", 9),
    ],
)
def test_each_suite_adds_its_own_to_a_record(version: str, cipher: str, each: int):
    facts = session(version, cipher)
    data = side(100, 16384, 1, each=each)
    assert agrees(data, 16485, facts)
    assert not agrees(data, 16484, facts)
    assert not agrees(data, 16486, facts)


@pytest.mark.parametrize(
    ("version", "cipher"),
    [
        ("TLSv1.2", "TLS_RSA_WITH_AES_128_CBC_SHA"),
        ("TLSv1.1", "TLS_RSA_WITH_AES_128_CBC_SHA"),
        ("TLSv1.2", ""),
        ("", ""),
        ("TLSv1.3", ""),
    ],
)
def test_what_pads_or_is_not_known_says_nothing(version: str, cipher: str):
    facts = session(version, cipher)
    for size in (0, 100, 116, 124):
        assert not agrees(side(100), size, facts)
    assert unseen(side(60_000), 0, facts) == 0


def test_a_direction_that_was_not_walked_says_nothing():
    nothing = RecordSide(0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert not agrees(nothing, 0, session())
    assert not agrees(nothing, 0, session("TLSv1.2", GCM))
    assert not agrees(side(900, begun=False), 0, session())


@pytest.mark.parametrize("tickets", [[], [250], [250, 250], [70, 71, 72, 73]])
@pytest.mark.parametrize("alert", [[], [2]])
def test_a_server_of_tls_1_3_sends_its_flight_tickets_data_and_an_alert(tickets: list[int], alert: list[int]):
    data = side(3000, *tickets, 5000, 16384, 5, *alert, flight=1)
    assert agrees(data, 21389, session())
    for size in (21388, 21390, 21389 - 5000, 0):
        assert not agrees(data, size, session())


def test_a_client_of_tls_1_3_ends_its_handshake_with_finished():
    assert agrees(side(52, 300, 80, client=True), 380, session())
    assert agrees(side(36, 300, client=True), 300, session(cipher="TLS_AES_128_GCM_SHA256"))
    assert not agrees(side(35, 300, client=True), 300, session(cipher="TLS_AES_128_GCM_SHA256"))
    assert not agrees(side(52, 300, 80, client=True), 432, session()), "without a handshake"


def test_a_client_with_a_certificate_sends_more_in_one_record_or_several():
    assert agrees(side(1800, 300, client=True), 300, session()), "all in one"
    assert agrees(side(1400, 260, 52, 300, client=True), 300, session()), "each in its own"
    assert not agrees(side(1400, 260, 53, 300, client=True), 300, session()), "no Finished at the end"


def test_too_much_plaintext_never_agrees():
    """Data of a server that did not wait for the client's Finished counts as its handshake."""
    assert not agrees(side(3000, 400, flight=2), 400, session())
    assert unseen(side(3000, 400, flight=2), 400, session()) == 0


@given(
    st.lists(st.integers(16, 16384), min_size=1, max_size=9),
    st.lists(st.integers(60, 400), max_size=4),
    st.integers(1, 16384),
)
def test_what_no_call_has_shown_is_never_said_to_be_all(data: list[int], tickets: list[int], hidden: int):
    whole, tail = side(3000, *tickets, *data, flight=1), side(3000, *tickets, *data, hidden, flight=1)
    assert agrees(whole, sum(data), session())
    if hidden != 2 and not _like_tickets(tickets, data, hidden):
        assert not agrees(tail, sum(data), session())
    assert unseen(tail, sum(data), session()) <= hidden
    plain = side(*data, hidden, each=24)
    assert not agrees(plain, sum(data), session("TLSv1.2", GCM))
    assert unseen(plain, sum(data), session("TLSv1.2", GCM)) == hidden


def _like_tickets(tickets: list[int], data: list[int], hidden: int) -> bool:
    """The first records behind the tickets hold together just what is hidden: they pass for more tickets."""
    behind = [*tickets, *data, hidden][:4]
    sums = [sum(behind[: at + 1]) for at in range(len(behind))]
    return sum(tickets) + hidden in sums


def test_what_a_client_left_unread_is_told_within_what_tickets_may_be():
    data = side(3000, 250, 250, 100, *[16384] * 20, flight=1)
    missing = unseen(data, 100 + 16384, session())
    assert 19 * 16384 - TICKET - 100 <= missing <= 19 * 16384
    assert unseen(data, 100 + 16384 * 20, session()) == 0


HASHES = (36, 52)
"""What a Finished holds: four bytes, and a hash."""


@pytest.mark.parametrize("finished", HASHES)
@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ([], [], False),
        ([], [2], False),  # an alert
        ([], [1], True),
        ([], [700, 2], True),
        ([1200, 200], [], False),  # a certificate, and its proof
        ([1200, 200], [2], False),
        ([1200, 200], [700], True),
        ([1200, 200], [700, 2], True),
    ],
)
def test_a_clients_data_in_tls_1_3(finished: int, before: list[int], after: list[int], *, told: bool):
    server = side(900, 250, 250, flight=1)
    assert data_sent(side(*before, finished, *after, client=True), server) == told


def test_a_client_that_was_refused_sent_no_data():
    server = side(900, begun=False)
    assert not data_sent(side(client=True, begun=False), server)  # an alert in the clear is not counted
    assert not data_sent(side(2, client=True), side(900, flight=1))
    assert not data_sent(
        side(1500, 2, client=True), side(900, 2, flight=1)
    )  # certificate and Finished in one


def test_a_servers_data_in_tls_1_3_is_more_than_tickets():
    client = side(52, 700, 2, client=True)
    assert not data_sent(side(900, flight=1), client)
    assert not data_sent(side(900, 250, 250, 250, 250, 2, flight=1), client)
    assert data_sent(side(900, 250, 250, 250, 250, 600, flight=1), client)


@pytest.mark.parametrize("size", [1, 29, 45, 3000])
def test_in_tls_1_2_every_record_is_data(size: int):
    client, server = side(size, each=24, client=True), side(100, each=24)
    assert data_sent(client, server)
    assert data_sent(server, client)
    assert not data_sent(side(each=24, client=True), side(each=24, begun=False))


def test_where_nobody_saw_a_client_hello_nothing_is_told():
    nothing = RecordSide(0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert not data_sent(nothing, nothing)


@given(sizes=st.lists(st.integers(0, 16384), max_size=9), flight=st.integers(0, 9), client=st.booleans())
def test_any_records_give_an_answer(sizes: list[int], flight: int, *, client: bool):
    sent = side(*sizes, flight=min(flight, len(sizes)), client=client)
    assert isinstance(data_sent(sent, side(client=not client)), bool)
