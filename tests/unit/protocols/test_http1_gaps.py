"""What a loss costs: at most the messages it touches, and pairing is never off by one."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spliffd.protocols.http1 import REQUEST, RESPONSE
from tests.unit.protocols.http1_transcripts import Player, facts

GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nX-N: %d\r\nContent-Length: 2\r\n\r\nok"


def test_gap_inside_a_body_of_known_length():
    player = Player().up(GET % 1).down(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
    head = 39
    player.gap(RESPONSE, 5).down(b"xyz").up(GET % 2).down(OK % 2)

    first, second = player.out

    assert (first.state, first.missing_bytes, first.gap_offset) == ("gap", 5, head + 2)
    assert first.response.body_size == 10
    assert first.user == (b"", b"ab.....xyz")
    assert second.state == "complete"
    assert player.parser.resyncs == 0


def test_gap_that_ends_with_the_body():
    player = Player().up(GET % 1).down(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
    player.gap(RESPONSE, 8).up(GET % 2).down(OK % 2)

    assert player.lines() == ["GET /1 200 gap", "GET /2 200 complete"]
    assert player.out[0].missing_bytes == 8


def test_gap_from_a_body_into_the_next_head():
    player = Player().up(GET % 1).down(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab").up(GET % 2)
    player.gap(RESPONSE, 8 + 20).down((OK % 2)[20:]).up(GET % 3).down(OK % 3)

    assert player.lines() == ["GET /1 200 gap", "GET /2 - response_missing", "GET /3 200 complete"]
    assert [exchange.missing_bytes for exchange in player.out] == [8, 0, 0]


def test_gap_inside_a_chunk():
    player = Player().up(GET % 1)
    player.down(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nab").gap(RESPONSE, 6)
    player.down(b"\r\n1\r\nc\r\n0\r\n\r\n").up(GET % 2).down(OK % 2)

    assert player.lines() == ["GET /1 200 gap", "GET /2 200 complete"]
    assert player.out[0].user == (b"", b"ab......c")


def test_gap_beyond_a_chunk():
    player = Player().up(GET % 1)
    player.down(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nab").gap(RESPONSE, 9)
    player.down(b"1\r\nc\r\n0\r\n\r\n").up(GET % 2).down(OK % 2)

    assert player.lines() == ["GET /1 200 gap", "GET /2 200 complete"]
    assert (player.out[0].missing_bytes, player.parser.resyncs) == (9, 1)
    assert player.parser.garbage_bytes == 11


def test_gap_inside_a_head():
    player = (
        Player()
        .up(GET % 1)
        .down(b"HTTP/1.1 500 Oops\r\nServer: x\r\nDa")
        .gap(RESPONSE, 40)
        .down(b"te: now\r\n\r\n")
    )
    player.up(GET % 2).down(OK % 2)

    assert player.lines() == ["GET /1 500 gap", "GET /2 200 complete"]
    assert player.out[0].response.headers == [(b"Server", b"x")]


def test_gap_inside_a_request_head():
    player = (
        Player()
        .up(b"POST /1 HTTP/1.1\r\nHo")
        .gap(REQUEST, 30)
        .up(b"body")
        .down(OK % 1)
        .up(GET % 2)
        .down(OK % 2)
    )

    assert player.lines() == ["POST /1 200 gap", "GET /2 200 complete"]


def test_gap_inside_a_start_line():
    player = Player().up(GET % 1).down(b"HTTP/1.").gap(RESPONSE, 30).up(GET % 2).down(OK % 2)

    assert player.lines() == ["GET /1 - response_missing", "GET /2 200 complete"]


def test_lost_response():
    player = Player().up(GET % 1).up(GET % 2).gap(RESPONSE, len(OK % 1)).down(OK % 2).up(GET % 3).down(OK % 3)

    assert player.lines() == ["GET /1 - response_missing", "GET /2 200 complete", "GET /3 200 complete"]


def test_lost_request():
    player = Player().down(OK % 1).gap(REQUEST, len(GET % 1)).up(GET % 2).down(OK % 2)

    assert player.lines() == ["- 200 request_missing", "GET /2 200 complete"]


def test_lost_request_told_before_its_response():
    player = Player().gap(REQUEST, len(GET % 1)).down(OK % 1).up(GET % 2).down(OK % 2)

    assert player.lines() == ["- 200 request_missing", "GET /2 200 complete"]


def test_lost_exchange():
    size = len(GET % 1), len(OK % 1)
    player = Player().gap(REQUEST, size[0]).up(GET % 2).gap(RESPONSE, size[1]).down(OK % 2)

    assert player.lines() == ["GET /2 200 complete"]


def test_pipelined_requests_that_were_seen_keep_their_turn():
    player = Player().up(GET % 1 + GET % 2).down(OK % 1).gap(REQUEST, 100).down(OK % 2 + OK % 3).up(GET % 4)

    assert player.lines() == ["GET /1 200 complete", "GET /2 200 complete", "- 200 request_missing"]


def test_nothing_is_paired_when_a_pipelining_client_loses_responses():
    player = (
        Player()
        .up(GET % 1 + GET % 2 + GET % 3)
        .down(OK % 1)
        .gap(RESPONSE, 100)
        .down(OK % 3)
        .up(GET % 4)
        .down(OK % 4)
    )
    player.close()

    assert player.parser.pairing.unpaired
    assert sorted(player.lines()) == [
        "- 200 request_missing",
        "- 200 request_missing",
        "GET /1 200 complete",
        "GET /2 - response_missing",
        "GET /3 - response_missing",
        "GET /4 - response_missing",
    ]


def test_more_requests_wait_than_the_gap_can_explain():
    player = Player().up(GET % 1 + GET % 2 + GET % 3 + GET % 4).gap(RESPONSE, 3).down(OK % 1)
    player.close()

    assert player.parser.pairing.unpaired
    assert "- 200 request_missing" in player.lines()


def test_the_last_waiting_request_is_certain_even_when_pipelining():
    player = Player().up(GET % 1 + GET % 2).down(OK % 1)
    player.gap(RESPONSE, 100).down(OK % 2)

    assert player.lines() == ["GET /1 200 complete", "GET /2 200 complete"]


def test_rest_of_a_response_with_lost_interim_is_not_given_to_the_next_request():
    player = (
        Player()
        .up(GET % 1)
        .down(b"HTTP/1.1 100 Continue\r\n")
        .gap(RESPONSE, 2)
        .down(OK % 1)
        .up(GET % 2)
        .down(OK % 2)
    )

    assert player.lines()[1:] == ["- 200 request_missing", "GET /2 200 complete"]


def test_gap_at_the_very_beginning():
    player = Player().gap(REQUEST, 500).gap(RESPONSE, 500).up(GET % 2).down(OK % 2)

    assert player.lines() == ["GET /2 200 complete"]


def test_gap_in_a_tunnel_is_not_the_parsers():
    player = Player().up(b"CONNECT h:1 HTTP/1.1\r\n\r\n").down(b"HTTP/1.1 200 OK\r\n\r\n").gap(REQUEST, 5)

    assert player.lines() == ["CONNECT h:1 200 complete"]
    assert player.close() == player.out[:1]


@pytest.mark.parametrize("size", [0, -3])
def test_gap_of_nothing(size):
    player = Player().gap(REQUEST, size).up(GET % 1).down(OK % 1)

    assert player.lines() == ["GET /1 200 complete"]


# ---- properties: a conversation with numbered messages, a piece of it lost ----------------------


def request(number: int, kind: int) -> bytes:
    body = b"q" * (number * 7 % 50)
    if kind == 0:
        return b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number
    if kind == 1:
        return b"POST /%d HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (number, len(body), body)
    return (
        b"PUT /%d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\na\r\n0123456789\r\n0\r\n\r\n"
        % number
    )


def response(number: int, kind: int) -> bytes:
    body = b"r" * (number * 13 % 60)
    if kind == 0:
        return b"HTTP/1.1 204 No Content\r\nX-N: %d\r\n\r\n" % number
    if kind == 1:
        return b"HTTP/1.1 200 OK\r\nX-N: %d\r\nContent-Length: %d\r\n\r\n%b" % (number, len(body), body)
    return (
        b"HTTP/1.1 200 OK\r\nX-N: %d\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nABCDE\r\na\r\n9876543210\r\n0\r\nT: t\r\n\r\n"
        % number
    )


def number_of(half) -> int:
    if hasattr(half, "path"):
        return int(half.path[1:])
    return int(dict(half.headers).get(b"X-N", b"-1"))


kinds = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=6)
lost = st.tuples(st.integers(0, 1), st.integers(0, 400), st.integers(1, 300))


def conversation(shapes) -> list[tuple[int, bytes]]:
    """Lock-step: each request is followed by its response."""
    ops = []
    for number, (asked, answered) in enumerate(shapes):
        ops += [(0, request(number, asked)), (1, response(number, answered))]
    return ops


def play_with_loss(ops, direction, start, size, late) -> Player:
    """Loses ``size`` bytes of ``direction`` from ``start`` on. ``late``: told when its next bytes come."""
    player = Player()
    offset = 0
    owed = 0
    for at, data in ops:
        if at != direction:
            player.feed(at, data)
            continue
        begin, end = offset, offset + len(data)
        offset = end
        cut_from, cut_to = max(begin, start), min(end, start + size)
        if cut_from >= cut_to:
            if owed:
                player.gap(direction, owed)
                owed = 0
            player.feed(at, data)
            continue
        if cut_from > begin:
            player.feed(at, data[: cut_from - begin])
        owed += cut_to - cut_from
        if cut_to < end or not late:
            player.gap(direction, owed)
            owed = 0
        if cut_to < end:
            player.feed(at, data[cut_to - begin :])
    player.close()
    return player


@settings(max_examples=400, deadline=None)
@given(kinds, lost, st.booleans())
@example(shapes=[(0, 1), (0, 1), (0, 1)], loss=(1, 0, 120), late=True)
def test_a_gap_costs_at_most_the_messages_it_touches(shapes, loss, late):
    direction, start, size = loss
    ops = conversation(shapes)
    expected = {int(x.request.path[1:]): facts(x) for x in play_whole(ops)}
    touched = touched_messages(ops, direction, start, size)

    player = play_with_loss(ops, direction, start, size, late)

    seen = set()
    for exchange in player.out:
        if exchange.request is not None and exchange.response is not None and exchange.response.headers:
            number = number_of(exchange.response)
            if number >= 0:
                assert number_of(exchange.request) == number, "paired wrongly"
        if exchange.state == "complete":
            number = number_of(exchange.request)
            assert facts(exchange) == expected[number]
            seen.add(number)
    assert seen >= set(range(len(shapes))) - touched
    requests = [number_of(x.request) for x in player.out if x.request is not None]
    assert len(requests) == len(set(requests)), "a request came out twice"


@settings(max_examples=200, deadline=None)
@given(kinds, st.lists(lost, min_size=1, max_size=3), st.integers(1, 5))
def test_a_pipelining_client_is_never_paired_wrongly(shapes, losses, window):
    """The client is known to pipeline (rule 4 of http1_pairing) before anything is lost."""
    player = Player().up(GET % 900 + GET % 901).down(OK % 900 + OK % 901)
    up = [request(number, asked) for number, (asked, _) in enumerate(shapes)]
    down = [response(number, answered) for number, (_, answered) in enumerate(shapes)]
    for start in range(0, len(up), window):
        for direction, messages in ((0, up), (1, down)):
            data = b"".join(messages[start : start + window])
            for where, raw, size in losses:
                at = raw % len(data)
                if where == direction and start <= raw % len(up) < start + window:
                    player.feed(direction, data[:at])
                    data = data[at + size :]
                    player.gap(direction, size)
                    break
            player.feed(direction, data)
    for exchange in player.close():
        if exchange.request is not None and exchange.response is not None and exchange.response.headers:
            number = number_of(exchange.response)
            assert number in (-1, number_of(exchange.request)), "paired wrongly"


def play_whole(ops):
    player = Player()
    for direction, data in ops:
        player.feed(direction, data)
    return player.close()


def touched_messages(ops, direction, start, size) -> set[int]:
    """Numbers of the exchanges of which the loss takes at least a byte."""
    touched, offset, number = set(), 0, 0
    for at, data in ops:
        if at == direction:
            if offset < start + size and start < offset + len(data):
                touched.add(number)
            offset += len(data)
            number += 1
    return touched


def test_messages_left_out_between_two_exchanges_leave_no_trace():
    player = Player().up(GET % 1).down(OK % 1).spare(REQUEST).up(GET % 9).spare(RESPONSE).down(OK % 9)
    player.up(GET % 10).down(OK % 10)

    assert player.lines() == ["GET /1 200 complete", "GET /9 200 complete", "GET /10 200 complete"]


def test_messages_left_out_inside_a_body():
    player = Player().up(GET % 1).down(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n12345")
    player.spare(RESPONSE).spare(REQUEST).up(GET % 2).down(OK % 2)

    assert player.lines() == ["GET /1 200 gap", "GET /2 200 complete"]
    assert player.out[0].missing_bytes == 15


def test_messages_left_out_inside_a_head():
    player = Player().up(GET % 1).down(b"HTTP/1.1 200 OK\r\nServer: x\r\nDa").spare(RESPONSE)
    player.spare(REQUEST).up(GET % 2).down(OK % 2)

    assert player.lines() == ["GET /1 200 gap", "GET /2 200 complete"]


def test_after_what_was_left_out_comes_a_response_whose_request_was_left_out():
    player = (
        Player().up(GET % 1).down(OK % 1).spare(RESPONSE).down(OK % 2).spare(REQUEST).up(GET % 3).down(OK % 3)
    )

    assert player.lines() == ["GET /1 200 complete", "- 200 request_missing", "GET /3 200 complete"]
