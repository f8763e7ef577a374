"""Fuzzes what reads the kernel's memory: records of the ring, flows, hellos; and the names of raw protocols.

The first byte chooses what, the rest is the memory, filled up with zeros. Traced programs and their peers
choose much of it: checked is that nothing raises, that names stay within their list, and that the arithmetic
of TLS records claims no more than the records hold.

Run: .venv/bin/python fuzz/fuzz_records.py -max_total_time=60 fuzz/corpus/records
"""

from __future__ import annotations

import sys

import atheris

from tests.support import pure

pure.sources_only()  # branches are counted in byte code

with atheris.instrument_imports(include=["spliffd.kernel", "spliffd.correlation", "spliffd.protocols"]):
    from spliffd.correlation.accounted import agrees, unseen
    from spliffd.correlation.facts import ConnectionFacts
    from spliffd.correlation.identity import fill_socket, first_facts
    from spliffd.kernel.flows import FLOW_SIZE, unpack_flow
    from spliffd.kernel.hellos import HELLO_SIZE, unpack_hello
    from spliffd.kernel.records import CONN_BYTES, unpack_conn
    from spliffd.protocols.recognise import ENOUGH, NAMES, Recogniser

SESSIONS = (
    ("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
    ("TLSv1.3", "TLS_AES_128_CCM_8_SHA256"),
    ("TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    ("TLSv1.2", "TLS_RSA_WITH_AES_128_CBC_SHA"),
)


def a_flow(data: bytes) -> None:
    flow = unpack_flow(data[:FLOW_SIZE].ljust(FLOW_SIZE, b"\0"))
    facts = ConnectionFacts()
    for facts.tls_version, facts.cipher in SESSIONS:
        for side in flow.sides:
            behind = side.records - side.flight_records, side.size - side.flight_size
            if not (0 <= 24 * behind[0] <= behind[1] and side.flight_size >= 24 * side.flight_records):
                continue  # no packet program counts so: a walk ends at a record that is too short
            plaintext = int.from_bytes(data[:5], "little")
            assert 0 <= unseen(side, plaintext, facts) <= side.size
            assert not agrees(side, plaintext, facts) or plaintext <= side.size


def a_connection(data: bytes) -> None:
    conn = unpack_conn(data[:CONN_BYTES].ljust(CONN_BYTES, b"\0"), 0)
    fill_socket(first_facts(conn), conn)


def a_hello(data: bytes) -> None:
    hello = unpack_hello(data[:HELLO_SIZE].ljust(HELLO_SIZE, b"\0"))
    assert len(hello.client) + len(hello.server) <= HELLO_SIZE


def a_talk(data: bytes) -> None:
    recogniser = Recogniser()
    role = ("client", "server", "")[data[0] % 3] if data else ""
    for at in range(0, min(len(data), 4 * ENOUGH), 17):
        recogniser.listen(data[at] & 1, data[at : at + 17], role, "")
    assert recogniser.name in ("", *NAMES)


KINDS = (a_flow, a_connection, a_hello, a_talk)


def test_one_input(script: bytes) -> None:
    if script:
        KINDS[script[0] % len(KINDS)](script[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
