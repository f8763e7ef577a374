"""What the kernel delivers of connections that nobody watches, call by call, and what it counts instead."""

from __future__ import annotations

import pytest

from spliffd import ipc
from spliffd.kernel import bpf, records
from spliffd.kernel.flows import FLOW_SIZE, look_up
from spliffd.kernel.maps import (
    DEMAND_CUT,
    DEMAND_PRESSED,
    DEMAND_RATE,
    DEMAND_SHARE,
    DEMAND_SINCE,
    SHARE_ALL,
)
from spliffd.kernel.unwanted import Unwanted
from tests.support.dialogue import Dialogue
from tests.support.lab import Lab, wait_for
from tests.support.shared import lab_of_the_file
from tests.support.tracer import Tracer
from tests.support.watched import GET, OK, Watched, twice

lab = lab_of_the_file("demand")

WALKS_AT = (FLOW_SIZE - 96, FLOW_SIZE - 48)
"""``walk`` of both sides, in struct flow."""


def test_all_is_delivered_while_the_rate_allows_it(kernel: Watched, dialogue: Dialogue):
    dialogue.client(GET)
    dialogue.server(OK)

    assert kernel.said() == twice(GET, OK)
    assert kernel.unsampled() == 0


def test_beyond_it_exchanges_are_counted_and_not_copied(kernel: Watched, dialogue: Dialogue):
    kernel.share(0)
    for _ in range(3):
        dialogue.client(GET)
        dialogue.server(OK)

    assert kernel.said() == []
    assert kernel.unsampled() == 2 * 3


def test_records_of_what_is_left_out_are_not_walked_any_more(kernel: Watched, dialogue: Dialogue):
    fd = kernel.tracer.maps.fd["flows"]
    dialogue.client(GET)
    cookies = {record.conn.socket_cookie for record in kernel.data()} - {0}
    for cookie in cookies:
        key = cookie.to_bytes(8, "little")
        flow = bytearray(bpf.map_lookup(fd, key, FLOW_SIZE))
        for at in WALKS_AT:
            flow[at : at + 8] = b"\1" * 8
        bpf.map_update(fd, key, bytes(flow))
    dialogue.client(GET)
    assert all(side.walk for cookie in cookies for side in look_up(fd, cookie).sides)

    kernel.share(0)
    dialogue.client(GET)

    assert not any(side.walk for cookie in cookies for side in look_up(fd, cookie).sides)


def test_an_exchange_that_has_begun_is_delivered_to_its_end(kernel: Watched, dialogue: Dialogue):
    dialogue.client(GET)
    kernel.share(0)
    dialogue.server(OK)
    dialogue.server(b"more of the body")
    dialogue.client(GET)
    dialogue.server(OK)

    assert kernel.said() == twice(GET, OK, b"more of the body")


@pytest.mark.parametrize("whom", ["everybody", "pid", "uid", "comm"])
def test_a_watcher_gets_all_from_its_first_call_on(kernel: Watched, dialogue: Dialogue, whom: str):
    chosen = {
        "everybody": None,
        "pid": ipc.Whom(pids=[1, dialogue.pid]),
        "uid": ipc.Whom(uids=[0]),
        "comm": ipc.Whom(comms=["other", "python3"]),
    }[whom]
    kernel.share(0)
    dialogue.client(GET)
    dialogue.server(OK)
    kernel.watch(chosen)
    dialogue.client(GET + b"x")
    dialogue.server(OK + b"x")
    found = kernel.data()
    kernel.leave()
    dialogue.client(GET)
    dialogue.server(OK)

    assert [record.payload for record in found] == twice(GET + b"x", OK + b"x")
    assert kernel.said() == []
    for record in found:
        assert record.flags == records.FLAG_SPARED << record.direction


def test_a_watcher_of_others_changes_nothing(kernel: Watched, dialogue: Dialogue):
    kernel.share(0)
    kernel.watch(ipc.Whom(pids=[1], uids=[1], comms=["python", "python33"]))
    dialogue.client(GET)
    dialogue.server(OK)

    assert kernel.said() == []


def test_the_last_of_two_watchers_counts(kernel: Watched, dialogue: Dialogue):
    kernel.share(0)
    mine, other = ipc.Whom(pids=[dialogue.pid]), ipc.Whom(pids=[1])
    kernel.demands.wanted(0, 1, mine)
    kernel.demands.wanted(1, 1, mine)
    kernel.demands.wanted(0, 1, other)
    dialogue.client(GET)
    assert kernel.said() == twice(GET)
    kernel.demands.wanted(1, 1, other)
    dialogue.client(GET)
    assert kernel.said() == []


def test_a_connection_in_the_middle_of_which_a_watcher_leaves_is_left_out_from_a_request_on(
    kernel: Watched, dialogue: Dialogue
):
    kernel.share(0)
    kernel.watch(None)
    dialogue.client(GET)
    assert kernel.said() == twice(GET)
    kernel.leave()
    dialogue.server(OK)
    dialogue.client(GET)

    assert kernel.said() == twice(OK)


@pytest.mark.parametrize(
    "first",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
        b"*1\r\n$4\r\nPING\r\n----",
        b"GET key-in-some-other-protocol\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
        b"PROPFIND / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"G",
    ],
    ids=["preface", "settings", "redis", "memcached", "connect", "webdav", "split"],
)
def test_what_is_not_known_to_be_plain_http1_is_always_delivered(
    kernel: Watched, dialogue: Dialogue, first: bytes
):
    kernel.share(0)
    dialogue.client(first)
    dialogue.server(OK)
    dialogue.client(GET)

    assert kernel.said() == twice(first, OK, GET)


@pytest.mark.parametrize(
    "method", [b"GET", b"PUT", b"POST", b"HEAD", b"PATCH", b"DELETE", b"OPTIONS"], ids=bytes.decode
)
def test_requests_are_known_by_their_method(kernel: Watched, dialogue: Dialogue, method: bytes):
    kernel.share(0)
    dialogue.client(method + b" /1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    dialogue.server(OK)

    assert kernel.said() == []
    assert kernel.unsampled() == 2


@pytest.mark.parametrize(
    "asking",
    [
        (b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",),
        (b"GET /1 HTTP/1.1\r\nUPGRADE: WebSocket\r\n\r\n",),
        (b"GET /1 HTTP/1.1\r\n", b"Upgrade: websocket\r\n\r\n"),
        (b"GET /1 HTTP/1.1\r\nCookie: " + b"c" * 4000 + b"\r\nUpgrade: websocket\r\n\r\n",),
    ],
    ids=["a-field", "in-capitals", "in-a-second-write", "behind-much"],
)
def test_what_a_connection_is_upgraded_to_is_delivered_from_the_switch_on(
    kernel: Watched, dialogue: Dialogue, asking: tuple[bytes, ...]
):
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    kernel.share(0)
    dialogue.client(GET)
    dialogue.server(OK)
    for part in asking:
        dialogue.client(part)
    dialogue.server(switch)
    dialogue.client(b"\x81\x85mask-----")
    dialogue.client(GET)

    assert kernel.said() == twice(switch, b"\x81\x85mask-----", GET)


@pytest.mark.parametrize("dialogue", ["socket"], indirect=True)  # of what has none every call is looked at
@pytest.mark.parametrize("body", [b"", b"an upgrade, in a body"], ids=["no-body", "a-body"])
def test_of_a_client_that_asks_for_no_other_protocol_requests_are_counted(
    kernel: Watched, dialogue: Dialogue, body: bytes
):
    """Its reads are not looked at: where a probe sees no end of a call, it costs half."""
    kernel.share(0)
    dialogue.client(GET)
    dialogue.server(OK)
    before = kernel.unsampled()
    dialogue.client(b"POST /1 HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    asked = kernel.unsampled() - before
    dialogue.server(OK)

    assert kernel.said() == []
    assert (asked, kernel.unsampled() - before) == (1, 2)


def test_an_exchange_that_was_counted_by_its_request_is_not_counted_again(
    kernel: Watched, dialogue: Dialogue
):
    kernel.share(0)
    dialogue.client(GET)
    dialogue.server(OK)
    dialogue.client(GET)
    kernel.share(SHARE_ALL)  # from here on all calls are looked at again
    dialogue.server(OK)

    assert kernel.said() == []
    assert kernel.unsampled() == 2 * 2


def test_interim_responses_are_no_exchanges(kernel: Watched, dialogue: Dialogue):
    kernel.share(0)
    dialogue.client(GET)
    dialogue.server(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    dialogue.server(OK)

    assert kernel.unsampled() == 2


def test_of_a_body_that_nobody_wants_the_rest_is_not_copied(kernel: Watched, dialogue: Dialogue):
    table = Unwanted(kernel.tracer.maps.fd["unwanted"])
    before = kernel.tracer.maps.counters.get("unwanted_bytes")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 45000\r\n\r\n"
    dialogue.client(GET)
    dialogue.server(head + b"1" * 5000)
    for record in kernel.data()[2:]:
        sent, received = (
            (len(head) + 44999, 0) if record.direction == records.SENT else (0, len(head) + 44999)
        )
        table.until(record.key, sent, received)
    dialogue.server(b"2" * 10000)
    dialogue.server(b"3" * 100)
    dialogue.server(b"4" * 29900)
    dialogue.server(OK)

    found = kernel.data()
    sent = [record for record in found if record.direction == records.SENT]
    read = [record for record in found if record.direction == records.RECEIVED]
    assert b"".join(record.payload for record in read) == b"".join(record.payload for record in sent)
    assert [record.payload for record in sent] == [b"3" * 100, b"4", OK]
    assert [record.offset for record in sent] == [len(head) + 15000, len(head) + 44999, len(head) + 45000]
    assert kernel.tracer.maps.counters.get("unwanted_bytes") - before == 2 * (10000 + 29899)


def test_the_end_tells_what_was_left_out_before_it(lab: Lab, kernel: Watched):
    kernel.share(0)
    dialogue = Dialogue(lab)
    dialogue.client(GET)
    dialogue.close()

    closed = [record for record in kernel.tracer.read() if record.kind == records.CLOSE]
    assert len(closed) == 2
    for record in closed:
        assert record.flags == records.FLAGS_SPARED


def test_the_share_falls_under_load_and_comes_back(kernel: Watched, dialogue: Dialogue):
    demand = kernel.tracer.maps.demand
    demand[DEMAND_SINCE], demand[DEMAND_RATE] = 0, 4

    def after_one_more() -> int:
        dialogue.client(GET)
        dialogue.server(OK)
        return demand[DEMAND_SHARE]

    wait_for(lambda: after_one_more() < 1024, 30, "fewer connections")
    demand[DEMAND_RATE] = 1 << 30
    wait_for(lambda: after_one_more() == 1024, 30, "all connections")


# ---- while the ring is nearly full -----------------------------------------------------------------


def test_under_pressure_watched_exchanges_are_left_out_whole(kernel: Watched, dialogue: Dialogue):
    kernel.watch(None)
    dialogue.client(GET)
    kernel.press(1024)
    dialogue.server(OK)  # of an exchange that has begun: not torn apart
    for _ in range(3):
        dialogue.client(GET)
        dialogue.server(OK)
    kernel.press(0)
    dialogue.client(GET)
    dialogue.server(OK)

    assert kernel.said() == twice(GET, OK, GET, OK)
    assert (kernel.shed(), kernel.unsampled()) == (2 * 3, 0)


def test_a_full_ring_leaves_out_and_an_empty_one_takes_back(lab: Lab):
    with Tracer(lab, ring_mib=1) as tracer:
        kernel = Watched(tracer)
        kernel.press(0, looked=0)
        kernel.watch(None)
        dialogue = Dialogue(lab, "socket")
        made = 0
        body = b"HTTP/1.1 200 OK\r\nContent-Length: 8000\r\n\r\n" + b"x" * 8000

        def exchange() -> None:
            nonlocal made
            dialogue.client(GET)
            dialogue.server(body)
            made += 1

        def until_shed() -> bool:
            exchange()
            return kernel.shed() > 0

        wait_for(until_shed, 30, "an exchange to be left out")
        whole = len(kernel.data())
        assert tracer.maps.counters.get("ring_full_data_records") == 0
        assert whole + 2 * kernel.shed() == 4 * made
        assert tracer.maps.demand[DEMAND_CUT] > 0

        def back() -> bool:
            exchange()
            return not tracer.maps.demand[DEMAND_PRESSED]

        wait_for(back, 30, "the pressure to end")
        kernel.data()
        exchange()
        assert len(kernel.said()) == 4
        assert tracer.maps.demand[DEMAND_CUT] == 0
        dialogue.close()
