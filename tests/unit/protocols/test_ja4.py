"""JA4 against published fingerprints: the lists that FoxIO's own test data gives in the order of the wire."""

from __future__ import annotations

import hashlib

import pytest

from spliffd.protocols.ja4 import ja4
from spliffd.protocols.tls_hello import ClientHello, is_grease, read_client_hello, read_flight
from tests.support import hellos

CHROME = "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035"
ALGORITHMS = "0403,0804,0401,0503,0805,0501,0806,0601"
BOTH = [0x0304, 0x0303]

# FoxIO's test data (python/test/testdata): JA4_ro says what was on the wire, JA4 what it makes.
PUBLISHED = {
    "tls3, Chrome": (
        "t13d1516h2_8daaf6152771_e5627efa2ab1",
        CHROME,
        "0023,0033,ff01,000a,0012,0005,0017,4469,0000,001b,000d,002d,000b,002b,0010,0015",
        ALGORITHMS,
        BOTH,
    ),
    "tls3, Chrome, shuffled": (
        "t13d1516h2_8daaf6152771_e5627efa2ab1",
        CHROME,
        "000d,001b,000b,4469,0023,0005,ff01,002d,0000,0012,0017,000a,0033,002b,0010,0015",
        ALGORITHMS,
        BOTH,
    ),
    "tls3, Chrome resuming": (
        "t13d1516h2_8daaf6152771_9b887d9acb53",
        CHROME,
        "0033,000a,0005,000d,0012,0000,0010,002b,0023,001b,0017,002d,ff01,4469,000b,0029",
        ALGORITHMS,
        BOTH,
    ),
    "badcurveball": (
        "t13d1615h2_46e7e9700bed_45f260be83e2",
        CHROME + ",000a",
        "0000,0017,ff01,000a,000b,0023,0010,0005,000d,0012,0033,002d,002b,001b,0015",
        ALGORITHMS + ",0201",
        BOTH,
    ),
    "sigalg-grease": (
        "t13d1517h2_8daaf6152771_cb7bf5808d99",
        CHROME,
        "fe0d,0010,0017,0033,44cd,ff01,000a,000d,0023,002b,000b,ca34,002d,0000,0005,001b,0012",
        "0904,0905,0906," + ALGORITHMS,
        BOTH,
    ),
    "tls-alpn-h2": (
        "t12d4605h2_85626a9a5f7f_aaf95bb78ec9",
        (
            "0004,0005,000a,0016,002f,0033,0035,0039,003c,003d,0041,0045,0067,006b,0081,0084,0088,009c,009d,009e,"
            "009f,00ba,00be,00c0,00c4,00ff,c007,c008,c009,c00a,c011,c012,c013,c014,c023,c024,c027,c028,c02b,c02c,"
            "c02f,c030,cca8,cca9,ccaa,ff85"
        ),
        "000a,000b,000d,0000,0010",
        "0601,0603,efef,0501,0503,0401,0403,eeee,eded,0301,0303,0201,0203",
        [],
    ),
}


def parsed(text: str) -> list[int]:
    return [int(one, 16) for one in text.split(",")]


def hello(ciphers: list[int], extensions: bytes = b"", version: int = 0x0303) -> ClientHello:
    found = read_client_hello(
        read_flight(hellos.record(22, hellos.client_hello(ciphers, extensions, version=version)))
    )
    assert found is not None
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name: str):
    expected, ciphers, kinds, algorithms, versions = PUBLISHED[name]
    extensions = hellos.usual(parsed(kinds), algorithms=parsed(algorithms), versions=versions)
    assert ja4(hello(parsed(ciphers), extensions)) == expected


def test_grease_is_left_out_wherever_it_stands():
    expected, ciphers, kinds, algorithms, versions = PUBLISHED["tls3, Chrome"]
    extensions = hellos.usual(
        [0x4A4A, *parsed(kinds), 0xDADA],
        algorithms=[0x2A2A, *parsed(algorithms)],
        versions=[0xFAFA, *versions],
    )
    assert ja4(hello([0x0A0A, *parsed(ciphers)], extensions)) == expected


def test_what_grease_is():
    """RFC 8701, 2: sixteen values."""
    found = [number for number in range(1 << 16) if is_grease(number)]
    assert found == [high << 12 | 0x0A00 | high << 4 | 0x0A for high in range(16)]


@pytest.mark.parametrize(
    ("protocol", "shown"),
    [
        *((b"h2", "h2"), (b"http/1.1", "h1"), (b"x", "x0"), (b"", "00")),
        *((b"\xc3\xa9x", "9x"), (b"x\xe9", "x9"), (b"\x0a\x0a", "99")),
    ],
)
def test_first_protocol(protocol: bytes, shown: str):
    assert ja4(hello([0x1301], hellos.usual([16], first=protocol))).split("_")[0] == f"t12i0101{shown}"


@pytest.mark.parametrize(
    ("version", "shown"), [(0x0303, "12"), (0x0302, "11"), (0x0301, "10"), (0x0300, "s3"), (0x0399, "00")]
)
def test_version_of_old_clients(version: int, shown: str):
    digest = hashlib.sha256(b"002f").hexdigest()[:12]
    assert ja4(hello([0x2F], b"", version)) == f"t{shown}i010000_{digest}_000000000000"


def test_counts_end_at_99():
    assert ja4(hello(list(range(200)))).startswith("t12i990000_")


def test_no_fingerprint_of_half_a_hello():
    whole = hellos.record(22, hellos.client_hello([0x1301], hellos.usual([0, 10, 11])))
    found = read_client_hello(read_flight(whole[:-1]))
    assert found is not None
    assert ja4(found) == ""
