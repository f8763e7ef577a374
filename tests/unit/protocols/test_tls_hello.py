"""Hellos by the byte, and real ones with OpenSSL's own words as oracle; any bytes, cut anywhere."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliffd.protocols import tls_hello
from spliffd.protocols.tls_ciphers import cipher_name
from spliffd.protocols.tls_hello import (
    ALERTS,
    RETRY_RANDOM,
    ClientHello,
    ServerHello,
    read_client_hello,
    read_flight,
    read_server_hello,
)
from tests.support import hellos
from tests.support.hellos import alpn, extension, message, record, server_name, vector

TLS13 = extension(43, b"\x03\x04")


def client_of(stream: bytes) -> ClientHello:
    found = read_client_hello(read_flight(stream))
    assert found is not None
    return found


def server_of(stream: bytes) -> ServerHello:
    found = read_server_hello(read_flight(stream))
    assert found is not None
    return found


def test_a_client_hello():
    extensions = (
        server_name(b"example.org")
        + alpn(b"h2", b"http/1.1")
        + extension(43, vector(1, b"\x03\x04\x03\x03"))
        + extension(13, vector(2, b"\x04\x03\x08\x04"))
        + extension(35, b"ticket")
    )
    hello = client_of(record(22, hellos.client_hello([0x1301, 0xC02B], extensions, session=b"12345678")))
    assert (hello.complete, hello.version, hello.session_id) == (True, 0x0303, b"12345678")
    assert (hello.ciphers, hello.extensions) == ([0x1301, 0xC02B], [0, 16, 43, 13, 35])
    assert (hello.sni, hello.alpn, hello.ticket) == ("example.org", [b"h2", b"http/1.1"], True)
    assert (hello.versions, hello.signature_algorithms) == ([0x0304, 0x0303], [0x0403, 0x0804])


def test_a_client_hello_of_old_has_no_extensions():
    hello = client_of(record(22, hellos.client_hello([0x2F], version=0x0301)))
    assert (hello.complete, hello.version, hello.extensions, hello.sni) == (True, 0x0301, [], "")


def test_a_hello_in_many_records():
    whole = hellos.client_hello([0x1301], server_name(b"example.org"))
    stream = b"".join(record(22, whole[at : at + 7]) for at in range(0, len(whole), 7))
    assert client_of(stream).sni == "example.org"


def test_a_name_that_is_not_utf8_is_latin1():
    assert client_of(record(22, hellos.client_hello([1], server_name(b"b\xfccher.de")))).sni == "b\xfccher.de"


def test_a_name_that_is_cut_off_is_no_name():
    whole = record(22, hellos.client_hello([0x1301], alpn(b"h2") + server_name(b"example.org")))
    hello = client_of(whole[:-3])
    assert (hello.complete, hello.sni, hello.alpn) == (False, "", [b"h2"])


def test_a_server_hello_of_tls_1_3():
    hello = server_of(record(22, hellos.server_hello(0x1302, extension(51, b"key") + TLS13)))
    assert (hello.complete, hello.version, hello.cipher) == (True, 0x0304, 0x1302)
    assert hello.extensions == [51, 43]


def test_a_server_hello_of_tls_1_2_and_what_follows():
    flight = hellos.server_hello(0xC02B, alpn(b"h2"), session=b"s" * 32) + message(11, b"certificates")
    hello = server_of(record(22, flight))
    assert (hello.version, hello.cipher, hello.alpn) == (0x0303, 0xC02B, "h2")
    assert (hello.session_id, hello.next_message) == (b"s" * 32, 11)


def test_what_is_encrypted_is_not_read():
    stream = (
        record(22, hellos.server_hello(0xC02B))
        + record(20, b"\x01")
        + record(22, b"\x14random looking bytes of Finished")
        + record(21, b"\x02\x28")
    )
    flight = read_flight(stream)
    assert [kind for kind, _, _ in flight.messages] == [2, 20]
    assert flight.alert == 0


@pytest.mark.parametrize(
    "random", [b"\x02\x00\x00\x1crandom", b"\x02random", b"\x02\x00\x00\x20" + b"r" * 28]
)
def test_what_is_encrypted_may_look_like_a_hello(random: bytes):
    """OpenSSL's Finished of TLS 1.2 begins with the byte of a ServerHello once in 256 sessions."""
    stream = record(22, hellos.server_hello(0xC02B, alpn(b"h2"))) + record(20, b"\x01")
    for following in (record(22, random), record(22, random.ljust(40, b"r"))):
        hello = server_of(stream + following)
        assert (hello.complete, hello.alpn, hello.next_message) == (True, "h2", 20)


def test_a_second_server_hello_behind_a_real_one_is_none():
    stream = record(22, hellos.server_hello(0xC02B, alpn(b"h2"))) + record(22, hellos.server_hello(0x1301))
    assert server_of(stream).cipher == 0xC02B


def test_of_two_server_hellos_the_second_counts():
    """A HelloRetryRequest, the ChangeCipherSpec that hides it, and the real one (RFC 8446, 4.1.4 and D.4)."""
    retry = record(22, hellos.server_hello(0x1301, TLS13, random=RETRY_RANDOM)) + record(20, b"\x01")
    assert server_of(retry).retry
    hello = server_of(retry + record(22, hellos.server_hello(0x1301, TLS13 + extension(41, b"\0\0"))))
    assert not hello.retry
    assert hello.extensions == [43, 41]


def test_of_two_client_hellos_the_first_counts():
    stream = b"".join(
        record(22, hellos.client_hello([0x1301], alpn(b"h2") + more)) for more in (b"", extension(44, b"x"))
    )
    assert client_of(stream).extensions == [16]


def test_half_a_server_hello_names_no_version_that_it_might_not_mean():
    whole = record(22, hellos.server_hello(0xC02B, extension(65281, b"\0") + alpn(b"h2")))
    assert server_of(whole[:-2]).version == 0
    assert server_of(whole[:-2]).cipher == 0xC02B
    whole = record(22, hellos.server_hello(0x1301, extension(51, b"key") + TLS13))
    assert server_of(whole[:-2]).version == 0x0304  # that suite is of no other


def test_an_alert():
    assert read_flight(record(21, b"\x02\x28")).alert == 0x228
    assert ALERTS[0x28] == "handshake_failure"


@pytest.mark.parametrize(
    "stream", [b"", b"HTTP/1.1 400 Bad Request\r\n", b"\x16", b"\x16\x02\x00\0\0\x01", b"\x80.."]
)
def test_what_is_no_tls_has_no_messages(stream: bytes):
    flight = read_flight(stream)
    assert (flight.messages, flight.alert) == ([], 0)
    assert (read_client_hello(flight), read_server_hello(flight)) == (None, None)


def test_names_of_suites():
    assert cipher_name(0x1301) == "TLS_AES_128_GCM_SHA256"
    assert cipher_name(0xCCA9) == "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
    assert cipher_name(0x2F) == "TLS_RSA_WITH_AES_128_CBC_SHA"
    assert cipher_name(0xFAFA) == "0xFAFA"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("certificate")
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-out", paths[0], "-keyout", paths[1], "-days", "2", "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


def contexts(certificate: tuple[str, str]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    server.load_cert_chain(*certificate)
    return client, server


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("protocols", [(), ("h2",), ("http/1.1", "h2")])
@pytest.mark.parametrize("name", [None, "example.org"])
def test_what_openssl_says_itself(
    version: str, protocols: tuple[str, ...], name: str | None, certificate: tuple[str, str]
):
    client, server = contexts(certificate)
    client.maximum_version = client.minimum_version = {
        "TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3
    }[version]  # fmt: skip
    client.set_alpn_protocols(list(protocols))
    server.set_alpn_protocols(["h2"])
    first = hellos.shake(client, server, name)
    again = hellos.shake(client, server, name, first.session)
    assert (first.reused, again.reused) == (False, True)
    for shaken in (first, again):
        asked, answered = client_of(shaken.client), server_of(shaken.server)
        assert (asked.complete, asked.sni) == (True, name or "")
        assert asked.alpn == [one.encode() for one in protocols]
        assert tls_hello.VERSIONS[answered.version] == shaken.version == version
        named = [suite["id"] & 0xFFFF for suite in client.get_ciphers() if suite["name"] == shaken.cipher]
        assert [answered.cipher] == named
        assert answered.alpn == (shaken.alpn if version == "TLSv1.2" else "")


def test_hello_retry_request_of_openssl(certificate: tuple[str, str]):
    client, server = contexts(certificate)
    server.set_ecdh_curve("secp521r1")  # the client's first key is X25519
    shaken = hellos.shake(client, server)
    kinds = [kind for kind, _, _ in read_flight(shaken.server).messages]
    assert kinds == [2, 20, 2]
    assert not server_of(shaken.server).retry
    assert server_of(shaken.server).version == 0x0304


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(stream: bytes):
    flight = read_flight(stream)
    read_client_hello(flight), read_server_hello(flight)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_cut_hello_says_nothing_that_the_whole_one_does_not(data: st.DataObject):
    kinds = data.draw(st.lists(st.sampled_from([0, 10, 11, 13, 16, 43, 51]), unique=True))
    whole = record(
        22,
        hellos.client_hello(
            data.draw(st.lists(st.integers(0, 65535), max_size=8)),
            hellos.usual(kinds, algorithms=[0x0403], versions=[0x0304]),
        ),
    )
    full = client_of(whole)
    part = read_client_hello(read_flight(whole[: data.draw(st.integers(0, len(whole)))]))
    if part is None:
        return
    compared: list[Callable[[ClientHello], list]] = [
        lambda hello: hello.ciphers,
        lambda hello: hello.extensions,
        lambda hello: hello.versions,
        lambda hello: hello.alpn,
    ]
    for take in compared:
        assert take(part) == take(full)[: len(take(part))]
    assert part.sni in ("", full.sni)
    assert not part.complete or part.extensions == full.extensions
