"""What the client prints for each kind of item, and that nothing from the wire controls a terminal."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliffctl.parts import Body, PartStore
from spliffctl.render import quote
from spliffctl.render.body import body_lines
from spliffctl.render.colour import COLOURS, PLAIN, wanted
from spliffctl.render.json import item_line, to_json
from spliffctl.render.text import TextOptions, TextRenderer
from spliffd.pb import spliff_pb2 as pb

NASTY = st.text(
    alphabet=st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from('\x00\x07\x08\t\n\r\x1b\x7f\x80\x85\x9b\x9f\u2028\u202e\u2066 "\\→'),
    ),
    max_size=12,
)
"""Text with many characters that a terminal would obey."""


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    __import__("time").tzset()


def renderer(palette=PLAIN, **options) -> TextRenderer:
    return TextRenderer(TextOptions(utc=True, **options), palette)


# ---- lines ---------------------------------------------------------------------------------------


def test_an_exchange_is_the_two_lines_of_the_manual(build):
    assert renderer().exchange(build.exchange(), None) == (
        "12:00:59.346 → GET https://api.example.com/users  h2 "
        "192.0.2.10:48372 → 198.51.100.25:443 curl (403410) [stream 1]\n"
        "12:00:59.639 ← 200 https://api.example.com/users  h2 application/json 1.2 KiB "
        "192.0.2.10:48372 → 198.51.100.25:443 curl (403410) 294.3 ms  xdp:eth0\n"
    )


def test_a_server_is_the_right_end_of_the_arrow(build):
    exchange = build.exchange(connection__role="server", process__comm="nginx", process__pid=812)
    for line in renderer().exchange(exchange, None).splitlines():
        assert "198.51.100.25:443 → 192.0.2.10:48372 nginx (812, server)" in line


@pytest.mark.parametrize(
    ("method", "wire", "confidence", "shown"),
    [
        ("SOCKET_NESTED", "TC", "high", "tc:eth0"),
        ("SOCKET_NESTED", "NONE", "high", "nested"),
        ("SOCKET_FD", "NONE", "high", "fd"),
        ("SOCKET_THREAD", "", "high", "thread"),
        ("PROCESS_TIMING", "NONE", "low", "timing (low confidence)"),
        ("PROCESS_TIMING", "XDP", "low", "xdp:eth0 timing (low confidence)"),
        ("NONE", "NONE", "", "none"),
    ],
)
def test_the_last_item_is_the_evidence(build, method, wire, confidence, shown):
    exchange = build.exchange(
        correlation__method=method, correlation__wire=wire, correlation__confidence=confidence
    )
    assert renderer().exchange(exchange, None).endswith(f" ms  {shown}\n")


def test_a_path_lists_its_interfaces_in_order(build):
    exchange = build.exchange(correlation__wire="TC", connection__interface="wg0")
    exchange.connection.path.add(interface="wg0", hook="TC", packets=11)
    assert renderer().exchange(exchange, None).endswith(" ms  tc:wg0\n")
    exchange.connection.path.add(interface="eth0", hook="XDP", packets=13)
    exchange.connection.path.add(interface="a b\x1b[2J", hook="TC", packets=17)
    assert renderer().exchange(exchange, None).endswith(' ms  tc:wg0,xdp:eth0,tc:"a b\\x1b[2J"\n')


@pytest.mark.parametrize(("wire", "shown"), [("XDP", "xdp:eth0"), ("NONE", "nested")])
def test_having_waited_for_the_packets_is_shown(build, wire, shown):
    exchange = build.exchange(
        correlation__wire=wire, correlation__attempts=2, correlation__latency_ns=3_210_000
    )
    assert renderer().exchange(exchange, None).endswith(f" ms  {shown} deferred 3.2 ms\n")


def test_what_was_not_seen_whole_says_so_in_colour(build):
    exchange = build.exchange(completeness__state="truncated", completeness__missing_bytes=1234)
    assert renderer().exchange(exchange, None).endswith("[truncated, 1,234 bytes missing]\n")
    assert "\x1b[33m[truncated" in renderer(COLOURS).exchange(exchange, None)


def test_an_exchange_without_a_response_says_so(build):
    exchange = build.exchange(completeness__state="response_missing")
    exchange.ClearField("response")
    line = renderer().exchange(exchange, None).splitlines()[1]
    assert "← no response https://api.example.com/users" in line
    assert line.endswith("[response missing]")


def test_an_exchange_without_a_request_has_only_the_response_line(build):
    exchange = build.exchange(completeness__state="request_missing")
    exchange.ClearField("request")
    (line,) = renderer().exchange(exchange, None).splitlines()
    assert "← 200 https://api.example.com " in line
    assert "[stream 1]" in line


def test_compact_is_one_line(build):
    assert renderer(compact=True).exchange(build.exchange(), None) == (
        "12:00:59.346 GET https://api.example.com/users 200 1.2 KiB 294.3 ms curl (403410)  xdp:eth0\n"
    )


def test_latency_shows_first_byte_and_total(build):
    assert "first byte 280.0 ms, total 294.3 ms" in renderer(latency=True).exchange(build.exchange(), None)


def test_http1_shows_its_version_and_ipv6_its_brackets(build):
    exchange = build.exchange(
        protocol="http1", request__version="1.0", connection__local__address="2001:db8::1", stream_id=0
    )
    assert "http/1.0 [2001:db8::1]:48372 → 198.51.100.25:443 curl" in renderer().exchange(exchange, None)


def test_grpc_status_is_shown_even_when_it_is_0(build):
    exchange = build.exchange(protocol="grpc")
    assert "grpc-status" not in renderer().exchange(exchange, None)
    exchange.grpc.status = 0
    assert "← 200 grpc-status 0 " in renderer().exchange(exchange, None)


def test_handshakes_messages_and_chunks(build):
    common = {
        "time_ns": build.noon,
        "process": build.exchange().process,
        "connection": build.exchange().connection,
    }
    who = "192.0.2.10:48372 → 198.51.100.25:443 curl (403410)"
    tls = pb.Tls(
        library="openssl",
        version="TLSv1.3",
        cipher="TLS_AES_128_GCM_SHA256",
        alpn="h2",
        sni="a.example",
        ja4="t13d",
        resumed=True,
    )
    correlation = pb.Correlation(method="SOCKET_FD")
    good = pb.Handshake(**common, tls=tls, correlation=correlation, success=True, duration_ns=12_300_000)
    assert renderer().handshake(good) == (
        f"12:00:00.000 * TLSv1.3 handshake TLS_AES_128_GCM_SHA256 h2 sni=a.example ja4=t13d resumed openssl "
        f"{who} 12.3 ms  fd\n"
    )
    bad = pb.Handshake(**common, tls=tls, correlation=correlation, reason="certificate\x1b[2J expired")
    assert "handshake failed: certificate\\x1b[2J expired TLS_AES_128_GCM_SHA256 h2" in renderer().handshake(
        bad
    )

    sent = pb.Message(**common, direction="sent", type="text", data=b"hello", size=5, wire_size=11)
    assert renderer().message(sent) == f"12:00:00.000 → ws text 5 B  {who}\n"
    assert renderer(bodies=True).message(sent).endswith("\n    hello\n")

    received = pb.Chunk(**common, direction="received", protocol="redis", size=3, offset=4096, data=b"\0\1\2")
    assert renderer().chunk(received) == f"12:00:00.000 ← raw redis 3 B at 4,096  {who}  none\n"
    assert "00001000  00 01 02" in renderer(bodies=True).chunk(received)


def test_a_loss_says_what_where_why_and_when(build):
    loss = pb.Loss(
        stage="subscriber", reason="queue_full", count=12,
        first_time_ns=build.noon, last_time_ns=build.noon + 1_009_000_000,
    )  # fmt: skip
    assert renderer().loss(loss) == (
        "!! lost 12 exchanges (subscriber: queue_full) between 12:00:00.000 and 12:00:01.009\n"
    )
    assert renderer().loss(pb.Loss(stage="kernel", reason="ring_full", count=1, bytes=16384)) == (
        "!! lost 1 record, 16.0 KiB (kernel: ring_full)\n"
    )


# ---- quoting -------------------------------------------------------------------------------------


def test_a_path_cannot_pretend_to_be_other_fields(build):
    exchange = build.exchange(request__path="/ h2 1.2.3.4:1 → 5.6.7.8:443 root (1)")
    line = renderer().exchange(exchange, None).splitlines()[0]
    assert '→ GET "https://api.example.com/ h2 1.2.3.4:1 → 5.6.7.8:443 root (1)"  h2 192.0.2.10' in line


def test_escape_sequences_become_visible():
    assert quote.quote("\x1b]0;owned\x07") == "\\x1b]0;owned\\x07"
    assert quote.quote("a\u202eb\x9bc\n") == "a\\u202eb\\x9bc\\n"
    assert quote.quote("grüße → 世界") == "grüße → 世界"
    assert quote.word("") == '""'
    assert quote.word('say "hi"') == '"say \\"hi\\""'


def test_lines_of_a_body_keep_tabs_and_quote_a_lone_cr():
    assert quote.lines("a\tb\r\nc\rd\n\nend") == ["a\tb", "c\\rd", "", "end"]


def controls(text: str, allowed: str) -> list[str]:
    return [
        c
        for c in text
        if (ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F or c in "\u2028\u2029\u202e") and c not in allowed
    ]


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_no_control_character_of_any_item_reaches_the_output(build, data):
    for message_class, kind in (
        (pb.Exchange, "exchange"), (pb.Handshake, "handshake"), (pb.Message, "message"),
        (pb.Chunk, "chunk"), (pb.Loss, "loss"),
    ):  # fmt: skip
        message = data.draw(build.any_message(message_class, NASTY))
        for options in ({}, {"compact": True, "latency": True}):
            text = renderer(**options)
            shown = text.exchange(message, None) if kind == "exchange" else getattr(text, kind)(message)
            assert not controls(shown, "\n")
            lines = 1 if kind != "exchange" or options else 2
            assert shown.count("\n") in range(1, lines + 1)
        if kind == "exchange":
            with_bodies = renderer(bodies=True).exchange(message, PartStore().take(message))
            assert not controls(with_bodies, "\n\t")
        assert not controls(item_line(kind, message), "")


# ---- bodies --------------------------------------------------------------------------------------


def shown(data: bytes, content_type: str = "", hexdump: bool = False) -> list[str]:
    return list(body_lines(Body(((0, data),)), content_type, PLAIN, hexdump=hexdump))


def test_text_is_shown_as_text_and_cannot_leave_its_indent():
    assert shown(b'{"a": 1}\n12:00:00.000 \xe2\x86\x92 GET forged\n') == [
        '    {"a": 1}',
        "    12:00:00.000 → GET forged",
    ]
    assert shown("grün".encode("latin-1"), "text/plain; charset=ISO-8859-1") == ["    grün"]


def test_data_is_shown_as_hexdump():
    assert shown(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR!") == [
        "    00000000  89 50 4e 47 0d 0a 1a 0a  00 00 00 0d 49 48 44 52  |.PNG........IHDR|",
        "    00000010  21                                                |!|",
    ]
    assert shown(b"plain", hexdump=True)[0].endswith("|plain|")


def test_a_text_cut_inside_a_character_is_still_text():
    assert shown("Größe".encode()[:3]) == ["    Gr\\xc3"]


def test_a_hole_is_shown_where_it_is():
    body = Body(((0, b"begin"), (1005, b"end")), ((5, 1000), (1008, 4)))
    assert list(body_lines(body, "", PLAIN, hexdump=False)) == [
        "    begin",
        "    … 1,000 bytes missing from offset 5 …",
        "    end",
        "    … 4 bytes missing from offset 1,008 …",
    ]


# ---- JSON ----------------------------------------------------------------------------------------


def contract():
    return [GetMessageClass(d) for d in pb.DESCRIPTOR.message_types_by_name.values()]


def as_json_format(message) -> object:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def test_the_line_has_one_key_and_the_names_of_the_contract(build):
    line = json.loads(item_line("exchange", build.exchange()))
    assert list(line) == ["exchange"]
    assert line["exchange"]["connection"]["socket_cookie"] == str(2**63 + 5)
    assert line["exchange"]["request"]["path"] == "/users"


@pytest.mark.parametrize("message_class", contract(), ids=lambda c: c.DESCRIPTOR.name)
def test_json_is_that_of_json_format(build, message_class):
    @settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
    @given(build.any_message(message_class, NASTY))
    def compare(message):
        text = to_json(message)
        assert json.loads(text) == as_json_format(message)
        assert text.isascii()
        assert text.isprintable()

    compare()


# ---- colours -------------------------------------------------------------------------------------


def test_auto_means_a_terminal_without_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("os.isatty", lambda fd: fd == 1)
    assert wanted("auto", 1)
    assert not wanted("auto", 2)
    assert not wanted("never", 1)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wanted("auto", 1)
    assert wanted("always", 1)


def test_colours_add_nothing_but_sgr(build):
    import re

    coloured = renderer(COLOURS).exchange(build.exchange(), None)
    assert "\x1b[32m200\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == renderer().exchange(build.exchange(), None)
