"""Fuzzes the reading of TLS hellos: any bytes from both sides, as the packet programs may keep them.

The first byte says where the rest is cut in two: before it the client's, behind it the server's. Checked on
the way: no exception, what is read is bounded by what was given, a fingerprint has its form or is empty, and
half of a hello is never called complete.

Run: .venv/bin/python fuzz/fuzz_tls_hello.py -max_total_time=60 fuzz/corpus/tls_hello
"""

from __future__ import annotations

import re
import sys

import atheris

from tests.support import pure

pure.sources_only()  # branches are counted in byte code

with atheris.instrument_imports(include=["spliffd.protocols", "spliffd.correlation.tls_facts"]):
    from spliffd.correlation.facts import ConnectionFacts
    from spliffd.correlation.tls_facts import learn, why_failed
    from spliffd.kernel.hellos import HELLO_ROOM, Hello
    from spliffd.protocols.tls_hello import read_client_hello, read_flight

FORM = re.compile(r"t(?:\d\d|s[23])[di]\d{4}[!-~]{2}_[0-9a-f]{12}_[0-9a-f]{12}")


def test_one_input(script: bytes) -> None:
    if not script:
        return
    at = 1 + (len(script) - 1) * script[0] // 255
    asked, answered = script[1:at][:HELLO_ROOM], script[at:][:HELLO_ROOM]
    hello = Hello(asked, answered, 0, 0, bool(script[0] & 1))
    facts = ConnectionFacts()
    learn(facts, hello)
    assert why_failed("", hello)
    assert not facts.ja4 or FORM.fullmatch(facts.ja4), facts.ja4
    flight = read_flight(asked)
    assert sum(len(body) for _, body, _ in flight.messages) <= len(asked)
    client = read_client_hello(flight)
    if client is not None and client.complete:
        assert 2 * len(client.ciphers) + 4 * len(client.extensions) <= len(asked)
        assert len(facts.sni.encode("utf-8", "replace")) <= 2 * len(asked)
        cut = read_client_hello(read_flight(asked[: len(asked) // 2]))
        assert cut is None or not cut.complete or len(asked) // 2 > 40


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
