"""Ring records in, exchanges out: losses, ends, reuse, joins, and any bytes at all."""

from __future__ import annotations

import pytest
from wire_records import BEGAN, SERVER, Stage, Tls, get, ok

from spliffd.correlation import engine as engines
from spliffd.kernel import records
from spliffd.protocols.messages import COMPLETE


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_one_exchange_with_everything_that_is_known(stage):
    tls = Tls(pid=7, start=70, uid=1000, comm=b"curl")
    stage.handle(tls.handshake(), tls.sent(get("/a")), tls.received(ok(b"hello")))

    (exchange,) = stage.told.exchanges
    (facts,) = stage.told.facts
    assert (exchange.request.path, exchange.response.status, exchange.response.body_size) == ("/a", 200, 5)
    assert exchange.state is COMPLETE
    assert (facts.pid, facts.ppid, facts.uid, facts.comm) == (7, 1, 1000, "curl")
    assert (facts.local_address, facts.local_port) == ("127.0.0.1", 1025)
    assert (facts.remote_address, facts.remote_port) == ("192.0.2.1", 443)
    assert (facts.family, facts.role, facts.library) == ("ipv4", "client", "openssl")
    assert (facts.socket_cookie, facts.netns_cookie) == (5, 3)
    assert (facts.correlation_method, facts.confidence) == ("SOCKET_NESTED", "high")
    assert stage.told.protocols == ["http1"]
    assert stage.told.processes == [(7, 70, 1)]
    assert len(stage.told.handshakes) == 1
    assert facts.handshake_ns > 0
    assert stage.count("exchanges/http1/openssl/SOCKET_NESTED/NONE") == 1
    assert stage.count("captured_bytes_sent") == len(get("/a"))
    assert stage.count("captured_bytes_received") == len(ok(b"hello"))
    assert (stage.count("tls_records_data"), stage.count("tls_records_handshake")) == (2, 1)
    assert (stage.count("connections_opened"), stage.count("connections_closed")) == (1, 0)


def test_times_are_of_the_calls(stage):
    """What is sent was there when its call began; what is received, and the end of a response, when it ended."""
    client, server = Tls(1), Tls(2, pid=8, role=SERVER)
    stage.handle(client.sent(get(), took=5))
    sent = client.now
    stage.handle(client.received(ok(b"x"), took=5))
    (exchange,) = stage.told.exchanges
    assert exchange.request.start_ns == sent - 5
    assert exchange.first_byte_ns == exchange.response.end_ns == client.now

    stage.handle(server.received(get(), took=5))
    received = server.now
    stage.handle(server.sent(ok(b"x"), took=5))
    exchange = stage.told.exchanges[1]
    assert exchange.request.start_ns == received
    assert (exchange.first_byte_ns, exchange.response.end_ns) == (server.now - 5, server.now)


def test_the_role_is_told_by_the_kernel_or_by_who_asks(stage):
    server = Tls(1, role=SERVER)
    stage.handle(server.received(get()), server.sent(ok()))
    unknown = Tls(2, role=0)
    stage.handle(unknown.received(get()), unknown.sent(ok()))
    assert [facts.role for facts in stage.told.facts] == ["server", "server"]


def test_a_socket_that_becomes_known_later(stage):
    tls = Tls(method=0, local="", remote="", local_port=0, remote_port=0, cookie=0)
    stage.handle(tls.sent(get("/1")), tls.received(ok()))
    tls.conn |= {
        "method": 2,
        "local": "2001:db8::1",
        "remote": "2001:db8::2",
        "local_port": 9,
        "remote_port": 443,
        "cookie": 77,
    }
    stage.handle(tls.record(records.SOCKET), tls.sent(get("/2")), tls.received(ok()))
    tls.conn |= {"method": 1, "cookie": 78}  # better evidence, told by a data record alone
    stage.handle(tls.sent(get("/3")), tls.received(ok()))

    facts = stage.told.facts[0]
    assert facts is stage.told.facts[2]
    assert (facts.family, facts.local_address, facts.socket_cookie) == ("ipv6", "2001:db8::1", 78)
    for method in ("NONE", "SOCKET_FD", "SOCKET_NESTED"):
        assert stage.count(f"exchanges/http1/openssl/{method}/NONE") == 1
    assert stage.count("tls_records_socket") == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_pieces_of_any_size(stage, size):
    tls = Tls()
    question, answer = get("/pieces") + get("/again"), ok(b"hello") + ok(b"")
    for data, make in ((question, tls.sent), (answer, tls.received)):
        stage.handle(*(make(data[i : i + size]) for i in range(0, len(data), size)))
    assert stage.paths() == ["/pieces", "/again"]
    assert stage.states() == [COMPLETE, COMPLETE]


def test_the_answer_may_be_read_before_the_question_is_decided(stage):
    """One byte of the request, then the whole response, then the rest: threads of one program."""
    tls = Tls()
    question = get("/early")
    stage.handle(tls.sent(question[:1]), tls.received(ok(b"x")), tls.sent(question[1:]))
    stage.handle(tls.close())
    assert [e.response.status for e in stage.told.exchanges if e.response] == [200]


# ---- losses ----------------------------------------------------------------------------------------


def test_a_gap_in_a_body_is_of_known_size(stage):
    tls = Tls()
    body = bytes(1000)
    answer = ok(body)
    stage.handle(tls.sent(get("/gap")), tls.received(answer[:-900]))
    tls.lose(records.RECEIVED, 500)
    stage.handle(tls.received(answer[-400:]), tls.sent(get("/next")), tls.received(ok()))

    assert stage.paths() == ["/gap", "/next"]
    broken, whole = stage.told.exchanges
    assert broken.state == "gap"
    assert broken.missing_bytes == 500
    assert broken.response.body_size == 1000
    assert whole.state is COMPLETE
    assert (stage.count("gaps"), stage.count("gap_bytes")) == (1, 500)
    assert stage.count("exchanges_incomplete") == 1


def test_a_record_that_holds_less_than_it_stands_for(stage):
    """The kernel could not read the memory (a fault): size says how much, captured how little."""
    tls = Tls()
    stage.handle(tls.sent(get("/fault")), tls.received(ok(bytes(100))[:-100]))
    stage.handle(
        tls.received(b"", size=60), tls.received(bytes(40)), tls.sent(get("/next")), tls.received(ok())
    )
    assert stage.paths() == ["/fault", "/next"]
    assert stage.states() == ["gap", COMPLETE]
    assert stage.count("gap_bytes") == 60


def test_a_lost_request_leaves_its_response(stage):
    tls = Tls()
    stage.handle(tls.sent(get("/1")), tls.received(ok()))
    tls.lose(records.SENT, len(get("/2")))
    stage.handle(tls.received(ok(b"two")), tls.sent(get("/3")), tls.received(ok(b"three")))
    stage.handle(tls.close())
    assert "/3" in stage.paths()
    assert stage.count("gap_bytes") == len(get("/2"))
    incomplete = [e for e in stage.told.exchanges if e.state is not COMPLETE]
    assert incomplete, "what is missing must be told"


def test_the_tail_that_was_lost_shows_at_the_close(stage):
    tls = Tls()
    stage.handle(tls.sent(get("/tail")), tls.received(ok(bytes(100))[:-100]))
    tls.lose(records.RECEIVED, 100)  # its record found the ring full
    stage.handle(tls.close())
    (exchange,) = stage.told.exchanges
    assert exchange.request.path == "/tail"
    assert exchange.state == "gap"
    assert exchange.missing_bytes == 100
    assert (stage.count("gaps"), stage.count("gap_bytes")) == (1, 100)
    assert stage.engine.connections == {}


def test_a_close_without_a_loss_counts_none(stage):
    tls = Tls()
    stage.handle(tls.sent(get()), tls.received(ok()), tls.close())
    assert (stage.count("gaps"), stage.states()) == (0, [COMPLETE])


# ---- ends ------------------------------------------------------------------------------------------


def test_a_body_until_the_end_is_complete_at_eof_and_not_at_close(stage):
    for number, end in enumerate(("eof", "close")):
        tls = Tls(number)
        stage.handle(tls.sent(get(f"/{end}")), tls.received(ok(b"until", length=False)))
        assert stage.paths() == ["/eof"][:number]
        stage.handle(getattr(tls, end)())
    assert stage.paths() == ["/eof", "/close"]
    assert stage.states()[0] is COMPLETE


def test_a_request_without_an_answer_comes_out_at_the_end(stage):
    for number, end in enumerate(("close", "exit")):
        tls = Tls(number, pid=100 + number)
        stage.handle(tls.sent(get(f"/{end}")), getattr(tls, end)())
    assert stage.paths() == ["/close", "/exit"]
    assert all(e.response is None and e.state is not COMPLETE for e in stage.told.exchanges)
    assert stage.count("exchanges_incomplete") == 2
    assert stage.engine.connections == {}


def test_exit_ends_all_connections_of_that_process_and_no_other(stage):
    mine = [Tls(n, pid=7) for n in range(3)]
    same_pid_before, other = Tls(9, pid=7, start=1), Tls(10, pid=8)
    for tls in (*mine, same_pid_before, other):
        stage.handle(tls.sent(get()))
    stage.handle(mine[0].exit())
    assert len(stage.told.exchanges) == 3
    assert len(stage.engine.connections) == 2
    stage.handle(mine[0].exit())  # told twice: nothing more
    assert len(stage.told.exchanges) == 3


def test_a_close_of_an_unknown_connection_opens_and_closes_it(stage):
    stage.handle(Tls().close())
    assert (stage.count("connections_opened"), stage.count("connections_closed")) == (1, 1)
    assert stage.told.exchanges == []


def test_a_handshake_that_failed(stage):
    stage.handle(Tls(1, flags=1).close())
    assert [reason for _, _, reason in stage.told.handshakes] == ["ended before the handshake was complete"]
    assert stage.count("handshakes_failed") == 1
    stage.handle(Tls(2, flags=0).close())  # never tried: no failure
    assert stage.count("handshakes_failed") == 1


def test_shutdown_brings_everything_out(stage):
    connections_ = [Tls(n) for n in range(5)]
    stage.handle(*(tls.sent(get(f"/{n}")) for n, tls in enumerate(connections_)))
    stage.engine.close_all(99)
    assert sorted(stage.paths()) == [f"/{n}" for n in range(5)]
    assert stage.count("connections_closed") == 5


# ---- who is who --------------------------------------------------------------------------------


def test_a_reused_object_is_another_connection(stage):
    """Its close record was lost, or the kernel's table threw it out: the old one ends, and is counted."""
    first, second = Tls(0xABC, generation=BEGAN), Tls(0xABC, generation=BEGAN + 999)
    stage.handle(first.sent(get("/first")), second.sent(get("/second")), second.received(ok()))
    assert stage.paths() == ["/first", "/second"]
    assert stage.told.exchanges[0].response is None
    assert stage.states()[1] is COMPLETE
    assert stage.count("connections_evicted") == 1
    assert len(stage.engine.connections) == 1
    stage.handle(second.close())
    assert stage.engine.connections == {}


def test_the_same_address_in_two_processes_does_not_mix(stage):
    mine, other, execed = Tls(0xABC, pid=7), Tls(0xABC, pid=8), Tls(0xABC, pid=7, exec_id=2)
    for n, tls in enumerate((mine, other, execed)):
        stage.handle(tls.sent(get(f"/{n}")))
    for tls in (execed, other, mine):
        stage.handle(tls.received(ok()))
    assert stage.paths() == ["/2", "/1", "/0"]
    assert stage.count("connections_evicted") == 0


def test_the_number_of_connections_is_bounded(stage, monkeypatch):
    monkeypatch.setattr(engines, "MAX_CONNECTIONS", 11)
    for n in range(23):
        stage.handle(Tls(n).sent(get(f"/{n}")))
    assert len(stage.engine.connections) == 11
    assert stage.count("connections_evicted") == 12
    assert stage.paths() == [f"/{n}" for n in range(12)]  # the oldest first, and none without a word
    assert stage.count("connections_opened") - stage.count("connections_closed") == 11


def test_tables_are_empty_when_all_is_over(stage):
    for n in range(7):
        tls = Tls(n, pid=n)
        stage.handle(tls.sent(get()), tls.received(ok()), tls.close() if n % 2 else tls.exit())
    assert stage.engine.connections == {}
    assert stage.engine._objects == {}
    assert stage.engine._processes == {}


def test_a_library_number_that_is_unknown_is_no_name(stage):
    for number, library in enumerate((0, 200)):
        tls = Tls(number, library=library)
        stage.handle(tls.sent(get()), tls.received(ok()))
    assert [facts.library for facts in stage.told.facts] == ["", ""]


# ---- joined in the middle ----------------------------------------------------------------------


def test_a_connection_older_than_the_worker_is_joined(stage):
    tls = Tls(generation=BEGAN - 1)
    tls.lose(records.SENT, 5000)
    tls.lose(records.RECEIVED, 70_000)
    stage.handle(tls.received(b"rest of a body"), tls.sent(get("/joined")), tls.received(ok(b"x")))
    stage.handle(tls.sent(get("/next")), tls.received(ok()))
    assert stage.paths()[-2:] == ["/joined", "/next"]
    assert stage.states()[-1] is COMPLETE
    assert stage.count("gaps") == 0  # what went before is not a loss


def test_a_connection_whose_first_records_were_lost_counts_them(stage):
    tls = Tls()
    tls.lose(records.SENT, len(get("/lost")))
    stage.handle(tls.received(ok()), tls.sent(get("/next")), tls.received(ok()))
    assert stage.count("gap_bytes") == len(get("/lost"))
    assert "/next" in stage.paths()


# ---- bodies ------------------------------------------------------------------------------------


def test_bodies_go_where_they_are_wanted_from_then_on(stage):
    tls = Tls()
    stage.handle(tls.sent(get("/1")), tls.received(ok(b"unseen")))
    stage.told.bodies = []
    stage.engine.watch_bodies()
    stage.handle(tls.sent(get("/2")), tls.received(ok(b"seen")))
    other = Tls(2)
    stage.handle(other.sent(get("/3")), other.received(ok(b"also")))
    assert stage.told.bodies == [(True, b"seen"), (True, b"also")]


def test_a_lost_end_is_found_out_and_its_late_record_says_nothing_new(stage):
    lost, alive = Tls(1), Tls(2)
    stage.handle(lost.sent(get("/pending")), alive.sent(get("/alive")))

    ended = stage.engine.close_over(lambda connection: connection.key[16] == 1, 99)

    assert ended == 1
    assert (stage.paths(), stage.states()) == (["/pending"], ["response_missing"])
    stage.handle(lost.close(), alive.received(ok(b"x")))
    assert stage.paths() == ["/pending", "/alive"]
    assert (stage.count("connections_opened"), stage.count("gaps")) == (2, 0)
