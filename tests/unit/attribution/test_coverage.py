"""What the ledger makes of a process: from evidence to a word and a sentence."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffctl.commands.why import REMEDIES
from spliffd.attribution.coverage import REASONS, Covered, Evidence, Missed, TlsFile, Verdict, judge

EARLY, ATTACHED, LATER = 1_009, 2_003, 3_001

MISSED = [Missed(LATER)]
LIBSSL = TlsFile("/usr/lib/libssl.so.3", "openssl", "attached", attached_ns=ATTACHED, named=True)
PLAIN = TlsFile("/usr/lib/libc.so.6", "", "skipped")
FOREIGN = TlsFile("/usr/lib/libc.so.6", "", "out_of_scope")


def refused(cause: str, *, named: bool = True) -> TlsFile:
    return TlsFile("/opt/app", "openssl", "refused", cause, "so it is", named=named)


def word(evidence: Evidence) -> tuple[str, str]:
    verdict = judge(evidence)
    return verdict.covered, verdict.reason


def test_what_speaks_no_tls_has_no_verdict():
    assert judge(Evidence()) == Verdict("")
    assert judge(Evidence(files=[LIBSSL, refused("static")])) == Verdict("")


def test_all_seen_some_seen_none_seen():
    assert judge(Evidence(captured=3)) == Verdict("covered")
    assert word(Evidence(captured=3, missed=MISSED, files=[LIBSSL])) == ("partly", "probes_silent")
    assert word(Evidence(missed=MISSED, files=[LIBSSL])) == ("not", "probes_silent")


@pytest.mark.parametrize("cause", ["static", "unsupported", "probe_refused", "unreadable", "32bit"])
def test_a_file_that_cannot_be_probed_is_the_reason(cause):
    verdict = judge(Evidence(missed=MISSED, files=[PLAIN, LIBSSL, refused(cause)]))
    assert verdict == Verdict("not", cause, "/opt/app: so it is")


def test_a_damaged_file_of_another_kind_is_no_reason():
    files = [refused("unreadable", named=False), PLAIN]
    assert word(Evidence(missed=MISSED, files=files)) == ("not", "unknown_library")


def test_connections_older_than_the_probes():
    both = [Missed(EARLY), Missed(LATER)]
    assert word(Evidence(missed=both[:1], files=[LIBSSL])) == ("not", "attached_late")
    assert word(Evidence(missed=both, files=[LIBSSL])) == ("not", "probes_silent")


def test_the_kernel_encrypts():
    assert word(Evidence(missed=[Missed(LATER, ktls=True)], files=[LIBSSL])) == ("not", "ktls")
    assert word(Evidence(captured=3, ktls_captured=1)) == ("partly", "ktls")


def test_what_is_out_of_scope():
    named = TlsFile("/usr/lib/libssl.so.3", "", "out_of_scope", named=True)
    assert word(Evidence(missed=MISSED, files=[LIBSSL, named])) == ("not", "out_of_scope")
    assert word(Evidence(missed=MISSED, files=[LIBSSL, FOREIGN])) == ("not", "probes_silent")
    assert word(Evidence(missed=MISSED, files=[FOREIGN])) == ("not", "out_of_scope")


def test_what_nobody_looked_at():
    unread = TlsFile("/opt/app", "", "unread", named=True)
    assert word(Evidence(missed=MISSED, files=None)) == ("not", "not_inspected")
    assert word(Evidence(missed=MISSED, files=[unread])) == ("not", "not_inspected")
    outside = TlsFile("/usr/lib/libcrypto.so.3", "", "out_of_scope", named=True)
    assert word(Evidence(missed=MISSED, files=[outside, unread])) == ("not", "not_inspected")
    assert word(Evidence(missed=MISSED, files=[])) == ("not", "unknown_library")
    assert word(Evidence(missed=MISSED, files=None, bits32=True)) == ("not", "32bit")


def test_a_namespace_that_no_hook_sees():
    assert word(Evidence(unseen=MISSED, files=[LIBSSL])) == ("not", "uncovered_namespace")
    assert word(Evidence(unseen=MISSED, files=[refused("static")])) == ("not", "static")
    assert word(Evidence(captured=1, unseen=MISSED)) == ("covered", "")


missed = st.lists(st.builds(Missed, st.integers(0, 5_000), st.booleans()), max_size=3)
file = st.builds(
    TlsFile,
    st.just("/f"),
    st.sampled_from(["", "openssl"]),
    st.sampled_from(["attached", "refused", "skipped", "out_of_scope", "unread"]),
    st.sampled_from(["", "static", "unsupported", "32bit", "unreadable", "probe_refused"]),
    attached_ns=st.integers(0, 5_000),
    named=st.booleans(),
)


@given(
    st.builds(
        Evidence,
        st.integers(0, 3),
        missed,
        st.integers(0, 3),
        st.integers(0, 3),
        missed,
        st.none() | st.lists(file, max_size=4),
        st.booleans(),
    )
)
def test_every_verdict_is_one_of_the_contract(evidence):
    verdict = judge(evidence)
    assert verdict.covered in typing.get_args(Covered)
    assert (verdict.reason in REASONS) == (verdict.covered in ("partly", "not"))
    assert bool(verdict.reason) == bool(verdict.detail)


def test_there_is_a_remedy_for_every_reason():
    assert sorted(REMEDIES) == sorted(REASONS)
