"""Handshakes as they are told: with what their packets said, once, ahead of what follows them."""

from __future__ import annotations

import pytest
from wire_records import SERVER, Stage, Tls, flow, get, ok

from spliffd.correlation.handshakes import MAX_WAITING, WAIT_NS
from spliffd.correlation.retry import NEVER
from spliffd.correlation.tls_facts import resumed, why_failed
from spliffd.kernel import records
from spliffd.kernel.hellos import Hello
from spliffd.protocols.tls_hello import CERTIFICATE, CHANGE_CIPHER_SPEC, ClientHello, ServerHello
from tests.support.hellos import alpn, client_hello, extension, record, server_hello, server_name, vector

NAME = server_name(b"example.org")
TLS13 = extension(43, b"\x03\x04")
OFFERS_13 = extension(43, vector(1, b"\x03\x04\x03\x03"))


def hello(
    asked: bytes, answered: bytes, *, sent: bool = True, client_alert: int = 0, server_alert: int = 0
) -> Hello:
    return Hello(asked, answered, client_alert, server_alert, sent)


TLS12 = hello(
    record(22, client_hello([0xC02B], NAME + alpn(b"h2"))), record(22, server_hello(0xC02B, alpn(b"h2")))
)
PLAIN13 = hello(record(22, client_hello([0x1301], NAME + OFFERS_13)), record(22, server_hello(0x1301, TLS13)))
ALPN13 = hello(
    record(22, client_hello([0x1301], NAME + OFFERS_13 + alpn(b"h2"))),
    record(22, server_hello(0x1301, TLS13)),
)


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    stage.hooked = True
    stage.flows[5] = flow((1, 2, 3))
    stage.engine.interfaces({1: "lo"})
    return stage


def test_facts_of_tls_1_2_are_all_in_the_clear(stage):
    stage.hellos[5] = TLS12
    tls = Tls()
    stage.handle(tls.handshake())
    (facts,) = stage.told.shaken
    assert (facts.tls_version, facts.cipher) == ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
    assert (facts.sni, facts.alpn, facts.resumed) == ("example.org", "h2", False)
    assert facts.ja4.startswith("t12d0102h2_")
    assert (facts.wire, facts.interface) == ("TC", "lo")
    assert stage.told.handshakes == [(tls.now - 1, tls.now, "")]
    assert (stage.count("handshakes_ok"), stage.count("hellos_read")) == (1, 1)


def test_an_answer_about_alpn_is_waited_for_in_tls_1_3(stage):
    """It is encrypted, and may yet come from the library; not longer than WAIT_NS."""
    stage.hellos[5] = ALPN13
    tls = Tls()
    stage.handle(tls.handshake())
    assert stage.told.handshakes == []
    assert stage.engine.next_ns() == tls.now + WAIT_NS
    stage.engine.retry(tls.now + WAIT_NS - 1)
    assert stage.told.handshakes == []
    stage.engine.retry(tls.now + WAIT_NS)
    (facts,) = stage.told.shaken
    assert (facts.tls_version, facts.alpn, facts.resumed) == ("TLSv1.3", "", False)
    assert stage.engine.next_ns() == NEVER


def test_a_client_that_offers_no_protocol_is_told_at_once(stage):
    stage.hellos[5] = PLAIN13
    stage.handle(Tls().handshake())
    assert len(stage.told.handshakes) == 1


def test_a_handshake_is_told_ahead_of_its_first_exchange(stage):
    stage.hellos[5] = ALPN13
    tls = Tls()
    order = []
    stage.told.handshake = lambda connection, *_: order.append("handshake")
    stage.told.exchange = lambda connection, _: order.append("exchange " + connection.facts.sni)
    stage.engine.handshakes._tell = stage.told.handshake
    stage.handle(tls.handshake(), tls.sent(get()), tls.received(ok(b"x")))
    assert order == ["handshake", "exchange example.org"]


def test_memory_bios_name_their_socket_later(stage):
    stage.hellos[5] = TLS12
    tls = Tls(method=0, cookie=0, local="", remote="")
    stage.handle(tls.handshake())
    assert stage.told.handshakes == []
    tls.conn |= {"method": 3, "cookie": 5, "local": "127.0.0.1", "remote": "192.0.2.1"}
    stage.handle(tls.record(records.SOCKET))
    (facts,) = stage.told.shaken
    assert (facts.sni, facts.correlation_method) == ("example.org", "SOCKET_THREAD")


def test_a_connection_whose_handshake_was_not_seen_has_the_facts_of_its_packets(stage):
    """NSS shakes hands inside of its first read or write."""
    stage.hellos[5] = TLS12
    tls = Tls(flags=0)
    stage.handle(tls.sent(get()), tls.received(ok(b"x")))
    (facts,) = stage.told.facts
    assert (facts.sni, facts.alpn, facts.handshake_ns) == ("example.org", "h2", 0)
    assert [(start, reason) for start, _, reason in stage.told.handshakes] == [(0, "")]
    stage.handle(tls.sent(get()), tls.received(ok(b"x")))
    assert len(stage.told.handshakes) == 1


def test_tls_inside_of_tls_is_not_what_the_packets_show(stage):
    """An HTTPS proxy: two objects on one socket, and the outer one's handshake came first."""
    stage.hellos[5] = TLS12
    outer, inner = Tls(1), Tls(2)
    stage.handle(outer.handshake(), inner.handshake())
    stage.engine.retry(inner.now + WAIT_NS)
    assert [facts.sni for facts in stage.told.shaken] == ["example.org", ""]
    stage.handle(inner.sent(get()), inner.received(ok(b"x")))
    assert stage.told.facts[0].tls_version == ""


def test_another_socket_has_other_facts(stage):
    """What was claimed by timing turns out to be another: nothing of the first one's packets is left."""
    stage.hellos[5] = TLS12
    tls = Tls()
    stage.handle(tls.handshake())
    stage.flows[6] = flow((1, 2, 3))
    tls.conn |= {"cookie": 6, "method": 2}
    stage.handle(tls.sent(get()), tls.received(ok(b"x")))
    (facts,) = stage.told.facts
    assert (facts.sni, facts.ja4, facts.cipher, facts.resumed) == ("", "", "", None)


def test_a_hello_that_is_not_there_is_counted(stage):
    stage.handle(Tls().handshake())
    assert stage.count("hellos_missing") == 1
    stage.engine.retry(1 << 62)
    (facts,) = stage.told.shaken
    assert (facts.sni, facts.tls_version, facts.resumed) == ("", "", None)


def test_a_hello_that_is_too_long_is_counted(stage):
    stage.hellos[5] = TLS12._replace(client=TLS12.client[:-1])
    stage.handle(Tls().handshake())
    assert stage.count("hellos_cut") == 1
    stage.engine.retry(1 << 62)
    assert stage.told.shaken[0].ja4 == ""
    assert stage.told.shaken[0].cipher


def test_failures_are_told_at_the_end_with_what_their_packets_said(stage):
    stage.hellos[5] = TLS12._replace(server_alert=0x228)
    tls = Tls(flags=1)
    stage.handle(tls.close())
    assert [reason for _, _, reason in stage.told.handshakes] == ["the peer sent alert handshake_failure"]
    assert stage.told.shaken[0].sni == "example.org"
    assert stage.count("handshakes_failed") == 1


def test_a_process_that_ends_in_the_middle(stage):
    tls = Tls(flags=1)
    stage.handle(tls.record(records.SOCKET))
    assert stage.told.handshakes == []
    stage.handle(tls.exit(), tls.exit())
    assert [reason for _, _, reason in stage.told.handshakes] == ["the process ended"]


def test_shutdown_tells_what_waits(stage):
    stage.hellos[5] = ALPN13
    stage.handle(Tls().handshake())
    stage.engine.close_all(2_000_000)
    assert len(stage.told.handshakes) == 1


def test_there_is_a_bound(stage):
    for number in range(MAX_WAITING + 7):
        stage.handle(Tls(number, cookie=0, method=0, local="", remote="").handshake())
    assert len(stage.told.handshakes) == 7


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (None, "ended before the handshake was complete"),
        (TLS12, "ended before the handshake was complete"),
        (TLS12._replace(server=b""), "no answer to the ClientHello"),
        (TLS12._replace(server=b"HTTP/1.1 400 Bad Request\r\n"), "the server answered in plain HTTP"),
        (TLS12._replace(server=b"SSH-2.0-x\r\n"), "the server answered in something that is not TLS"),
        (TLS12._replace(server=record(21, b"\x02\x46")), "the peer sent alert protocol_version"),
        (TLS12._replace(server=record(21, b"\x02\x46"), sent=False), "sent alert protocol_version"),
        (TLS12._replace(client=TLS12.client + record(21, b"\x02\x30")), "sent alert unknown_ca"),
        (TLS12._replace(client_alert=0x230, sent=False), "the peer sent alert unknown_ca"),
        (TLS12._replace(client_alert=0x2FA), "sent alert number 250"),
    ],
)
def test_why_handshakes_fail(said: Hello | None, why: str):
    assert why_failed("", said) == why


def offered(session: bytes = b"", ticket: bool = False) -> ClientHello:
    hello = ClientHello()
    hello.complete, hello.session_id, hello.ticket = True, session, ticket
    return hello


def chosen(
    version: int = 0x0303, session: bytes = b"", following: int = -1, extensions: tuple[int, ...] = ()
) -> ServerHello:
    hello = ServerHello()
    hello.complete, hello.version, hello.session_id = True, version, session
    hello.next_message, hello.extensions = following, list(extensions)
    return hello


@pytest.mark.parametrize(
    ("client", "server", "answer"),
    [
        (offered(), chosen(0x0304), False),
        (offered(b"compatible"), chosen(0x0304, b"compatible"), False),
        (offered(), chosen(0x0304, extensions=(43, 41)), True),
        (offered(b"id"), chosen(session=b"id"), True),
        (offered(b"id"), chosen(session=b"other"), False),
        (offered(b"id"), chosen(), False),
        (offered(), chosen(session=b"new"), False),
        (offered(b"id"), chosen(session=b"id", following=CERTIFICATE), False),
        (offered(ticket=True), chosen(following=CHANGE_CIPHER_SPEC), True),
        (offered(ticket=True), chosen(following=CERTIFICATE), False),
        (offered(ticket=True), chosen(), None),
    ],
)
def test_resumed(client: ClientHello, server: ServerHello, answer: bool | None):
    assert resumed(client, server) is answer
    server.complete = False
    assert resumed(client, server) is None


def test_servers_have_the_same_facts(stage):
    stage.hellos[5] = TLS12._replace(sent=False)
    stage.handle(Tls(role=SERVER).handshake())
    assert stage.told.shaken[0].sni == "example.org"


def said(tls: Tls, fact: int, payload: bytes = b"", number: int | None = None) -> bytes:
    """The library has said something."""
    before = list(tls.offsets)
    record_ = tls.record(records.FACT, fact, payload, size=number)
    tls.offsets = before
    return record_


def test_the_alpn_answer_comes_from_the_library(stage):
    stage.hellos[5] = ALPN13
    tls = Tls()
    stage.handle(tls.handshake())
    assert stage.told.handshakes == []
    stage.handle(said(tls, records.FACT_ALPN, b"h2"))
    assert [facts.alpn for facts in stage.told.shaken] == ["h2"]
    stage.handle(tls.sent(get()), tls.received(ok(b"x")))
    assert stage.told.facts[0].alpn == "h2"
    assert stage.count("tls_records_fact") == 1


def test_no_protocol_is_an_answer_too(stage):
    stage.hellos[5] = ALPN13
    tls = Tls()
    stage.handle(tls.handshake(), said(tls, records.FACT_ALPN))
    assert [facts.alpn for facts in stage.told.shaken] == [""]


@pytest.mark.parametrize(
    ("library", "number", "alert", "why"),
    [
        (1, 20 << 32 | 193, 0, "no cipher suite in common"),
        (1, 20 << 32 | 193, 0x228, "no cipher suite in common (sent alert handshake_failure)"),
        (1, 20 << 32 | 1048, 0, "the peer sent alert unknown_ca"),
        (1, 20 << 32 | 9999, 0, "OpenSSL reason 9999"),
        (1, 6 << 32 | 7, 0, "OpenSSL error 7 of library 6"),
        (4, 43, 0, "error in the certificate"),
        (4, 999, 0, "GnuTLS error -999"),
    ],
)
def test_reasons_of_libraries(stage, library: int, number: int, alert: int, why: str):
    stage.hellos[5] = ALPN13._replace(client_alert=alert)
    tls = Tls(flags=9, library=library)
    stage.handle(said(tls, records.FACT_FAILED, number=number))
    assert stage.told.handshakes == []  # what its program finds out may add to it
    stage.handle(tls.close())
    ((start, end, reason),) = stage.told.handshakes
    assert reason == why
    assert (start, end - start > 0) == (tls.conn["handshake"], True)
    assert stage.count("handshakes_failed") == 1


def test_what_is_wrong_with_a_certificate(stage):
    tls = Tls(flags=9)
    stage.handle(
        said(tls, records.FACT_FAILED, number=20 << 32 | 134), said(tls, records.FACT_VERIFIED, number=10)
    )
    stage.engine.retry(1 << 62)
    assert [reason for _, _, reason in stage.told.handshakes] == ["certificate verify failed: expired"]


def test_a_failure_that_was_none(stage):
    """The library noted an error and went on: only the end is told, and counted."""
    stage.hellos[5] = PLAIN13
    tls = Tls()
    stage.handle(said(tls, records.FACT_FAILED, number=20 << 32 | 193), tls.handshake())
    assert [reason for _, _, reason in stage.told.handshakes] == [""]
    assert (stage.count("handshakes_ok"), stage.count("handshakes_failed")) == (1, 0)


def test_a_peer_that_closes(stage):
    stage.hellos[5] = PLAIN13._replace(server=b"")
    stage.handle(Tls(flags=5).close())
    assert [reason for _, _, reason in stage.told.handshakes] == ["the peer closed the connection"]


def test_the_alert_of_a_peer_that_closes_says_more(stage):
    stage.hellos[5] = PLAIN13._replace(server=record(21, b"\x02\x28"))
    stage.handle(Tls(flags=5).close())
    assert [reason for _, _, reason in stage.told.handshakes] == ["the peer sent alert handshake_failure"]
