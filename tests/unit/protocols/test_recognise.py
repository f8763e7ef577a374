"""What is not HTTP is named by what its ends say first, or by ALPN; what is in doubt has no name."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffctl.filters import RAW_PROTOCOLS
from spliffd.protocols.recognise import ENOUGH, NAMES, Recogniser, by_alpn, recognise


def kafka(key: int, version: int, client: bytes, rest: bytes = b"") -> bytes:
    head = struct.pack(">hhih", key, version, 1, len(client)) + client + rest
    return struct.pack(">i", len(head)) + head


def mysql(flags: int = 0x19FFAE85) -> bytes:
    body = struct.pack("<IIB", flags, 1 << 24, 45) + bytes(23) + b"root\0\x14" + bytes(20) + b"mysql_native\0"
    return len(body).to_bytes(3, "little") + b"\2" + body


def dns(name: bytes = b"\7example\3com\0", kind: int = 28) -> bytes:
    query = struct.pack(">HHHHHH", 0x1234, 0x0120, 1, 0, 0, 1) + name + struct.pack(">HH", kind, 1)
    query += b"\0\0\x29\4\xd0\0\0\0\0\0\0"
    return struct.pack(">H", len(query)) + query


STARTUP = b"user\0me\0database\0db\0\0"
MESSAGE = b"\0\0\0\0\x02isMaster"
ASKED = {
    "redis": [b"*1\r\n$4\r\nPING\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n"],
    "postgresql": [struct.pack(">ii", 8 + len(STARTUP), 196608) + STARTUP],
    "mysql": [mysql()],
    "mqtt": [
        b"\x10\x10\0\4MQTT\4\2\0\x3c\0\4test",
        b"\x10\x8a\1\0\4MQTT\5\2\0\x3c",
        b"\x10\x13\0\6MQIsdp\3\2\0\0",
    ],
    "kafka": [kafka(18, 3, b"rdkafka", b"\0\7rdkafka"), kafka(3, 9, b"consumer-1"), kafka(18, 0, b"")],
    "smtp": [b"EHLO host.example\r\n"],
    "imap": [b"a001 CAPABILITY\r\n", b'A1 LOGIN "me" "x"\r\n'],
    "pop3": [b"APOP me c4c9334bac560ecc979e58001b3e22fb\r\n"],
    "dns": [dns(), dns(b"\0", 2)],
    "ldap": [b"\x30\x0c\2\1\1\x60\7\2\1\3\4\0\x80\0", b"\x30\x84\0\0\0\x0c\2\1\1\x63\7\2\1\3\4\0\x80\0"],
    "amqp": [b"AMQP\0\0\x09\1", b"AMQP\3\1\0\0"],
    "ftp": [b"PBSZ 0\r\n"],
    "xmpp": [b"<?xml version='1.0'?><stream:stream to='a'>"],
    "irc": [b"CAP LS 302\r\nNICK me\r\n"],
    "mongodb": [struct.pack("<iiii", 16 + len(MESSAGE), 1, 0, 2013) + MESSAGE],
    "ssh": [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "tls": [b"\x16\3\1\2\0\1\0\1\xfc\3\3"],
}
ANSWERED = {
    "redis": [b"+PONG\r\n", b"-NOAUTH Authentication required.\r\n"],
    "smtp": [b"220 mail.example ESMTP Postfix\r\n", b"220-mail.example SMTP\r\n"],
    "imap": [b"* OK [CAPABILITY IMAP4rev1] ready\r\n"],
    "pop3": [b"+OK POP3 ready <1896.697170952@dbc.mtview.ca.us>\r\n"],
    "ftp": [b"220 ProFTPD Server ready\r\n", b"220 (vsFTPd 3.0.3)\r\n"],
    "ldap": [b"\x30\x0c\2\1\1\x61\7\x0a\1\0\4\0\4\0"],
}


def test_every_name_is_tried_and_the_client_knows_them():
    assert set(ASKED) == set(NAMES) == set(RAW_PROTOCOLS)


@pytest.mark.parametrize(("name", "data"), [(n, d) for n, found in ASKED.items() for d in found])
def test_by_what_the_client_says_first(name: str, data: bytes):
    assert recognise(data, b"") == name


@pytest.mark.parametrize(("name", "data"), [(n, d) for n, found in ANSWERED.items() for d in found])
def test_by_what_the_server_says_first(name: str, data: bytes):
    assert recognise(b"", data) == name


@pytest.mark.parametrize("name", sorted(ASKED))
def test_however_the_bytes_are_cut(name: str):
    for data in ASKED[name]:
        listener = Recogniser()
        for at in range(len(data)):
            listener.listen(0, data[at : at + 1], "client", "")
        assert listener.name == name


@pytest.mark.parametrize(
    "data",
    [
        b"", b"PING\r\n", b"+OK\r\n", b"220 hello\r\n", b"USER me\r\n", b"\0" * 64, b"\xff" * 64,
        b"\0\0\0\x08\x04\xd2\x16\x2f", mysql(0), dns()[:10], b"\x30\x03\2\1\1", b"* 1 EXISTS\r\n",
        kafka(99, 0, b"x"), kafka(18, 99, b"x"), b"hello world, this is nothing that anybody speaks",
    ],
)  # fmt: skip
def test_what_is_in_doubt_has_no_name(data: bytes):
    assert recognise(data, data) == ""


def test_alpn_names_it_also_when_it_comes_late():
    assert (by_alpn("dot"), by_alpn("h2"), by_alpn("")) == ("dns", "", "")
    listener = Recogniser()
    listener.listen(0, b"\1\2\3", "client", "")
    assert listener.name == ""
    listener.listen(1, b"\4", "client", "mqtt")
    assert listener.name == "mqtt"


def test_whose_end_it_is_may_be_unknown():
    for role, direction in (("server", 1), ("client", 0), ("", 0), ("", 1)):
        listener = Recogniser()
        listener.listen(direction, b"*1\r\n$4\r\nPING\r\n", role, "")
        assert listener.name == "redis"
    listener = Recogniser()
    listener.listen(0, b"EHLO me\r\n", "server", "")
    assert listener.name == ""  # a server does not greet like that


def test_it_listens_no_longer_than_it_should():
    listener = Recogniser()
    for _ in range(3):
        listener.listen(0, b"\1" * ENOUGH, "", "")
        listener.listen(1, b"\2" * ENOUGH, "", "")
    listener.listen(0, b"EHLO me\r\n", "", "")
    assert listener.name == ""


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_no_bytes_raise(asked: bytes, answered: bytes):
    assert recognise(asked, answered) in ("", *NAMES)
