"""Proofs about the function that SSL_X and SSL_X_ex share: what is accepted, and above all what is not."""

from __future__ import annotations

import pytest

from spliffd.targets import openssl as placement
from spliffd.targets.elf import Image
from tests.unit.targets.conftest import (
    ADD_RSP,
    CALL,
    ENDBR64,
    EXTEND,
    JG,
    JMP,
    JS,
    RCX_SLOT,
    RET,
    SUB_RSP,
    TEST_EAX,
    TEST_EDX,
    extended,
    library,
    openssl,
    plain,
)


def inspect(opened, data, relocate=True):
    with Image(opened(data)) as image:
        return placement.inspect(image, relocate)


def by_op(inspection, op):
    return [site for site in inspection.sites if site.op == op]


def check_internal(inspection, op, offset):
    assert inspection.reason == ""
    [site] = by_op(inspection, op)
    assert (site.symbol, site.placement, site.flavour) == (f"ssl_{op}_internal", "internal", "pointer")
    assert (site.offset, site.return_probe) == (offset, True)


def check_entries(inspection, op, places, because):
    plain_site, extended_site = by_op(inspection, op)
    assert because in inspection.reason
    assert (plain_site.flavour, extended_site.flavour) == ("count", "pointer")
    for site in (plain_site, extended_site):
        assert (site.placement, site.return_probe) == ("entry", True)
        assert site.offset == places[site.symbol]


def test_both_directions_of_the_usual_shape_are_proved(opened):
    data, places = library(openssl())
    inspection = inspect(opened, data)
    check_internal(inspection, "read", places["read_internal"])
    check_internal(inspection, "write", places["write_internal"])


PREFIXED = [ENDBR64 + b"\x41\x55\x41\x5d" + RET]  # endbr64; push r13; pop r13; ret
FRAME = [
    ENDBR64 + b"\x55\x48\x89\xe5" + SUB_RSP + b"\x10",  # endbr64; push rbp; mov rbp, rsp; sub rsp, 16
    TEST_EDX,
    (JS, "bad"),
    b"\x48\x8d\x4d\xf8",  # lea rcx, [rbp - 8]
    EXTEND,
    (CALL, "read_internal"),
    TEST_EAX,
    b"\x0f\x4f\x45\xf8",  # cmovg eax, [rbp - 8]
    ":out",
    b"\xc9" + RET,
    ":bad",
    (CALL, "ERR_new@plt"),
    (JMP, "out"),
]
POSITIVE_BRANCH = [
    SUB_RSP + b"\x18",
    EXTEND,
    RCX_SLOT,
    (CALL, "read_internal"),
    b"\x83\xf8\x00",  # cmp eax, 0
    (JG, "good"),
    ":done",
    ADD_RSP + b"\x18" + RET,
    ":good",
    b"\x8b\x04\x24",
    (JMP, "done"),
]


@pytest.mark.parametrize("shape", [FRAME, POSITIVE_BRANCH], ids=["frame pointer, cmovg", "cmp, jg"])
def test_other_compilers_shapes_are_proved(opened, shape):
    data, places = library(openssl(SSL_read=shape))
    check_internal(inspect(opened, data), "read", places["read_internal"])


def test_a_probe_goes_behind_an_endbr64(opened):
    data, places = library(openssl(read_internal=PREFIXED))
    check_internal(inspect(opened, data), "read", places["read_internal"] + 4)


@pytest.mark.parametrize(
    "first",
    [b"\x50", b"\x41\x57", b"\x90", b"\x0f\x1f\x44\x00\x00", b"\x74\x00", b"\xeb\x00", b"\xe8\0\0\0\0"],
)
def test_all_instructions_that_the_kernel_emulates_will_do(opened, first):
    data, places = library(openssl(read_internal=[first + RET]))
    check_internal(inspect(opened, data), "read", places["read_internal"])


@pytest.mark.parametrize(
    "first",
    [
        SUB_RSP + b"\x38",
        b"\x48\x89\xfb",
        ENDBR64 + SUB_RSP + b"\x38",
        ENDBR64 + ENDBR64,
        b"\x48\x55",
        b"\x42\x55",
        b"\x66\x55",
    ],
    ids=["sub", "mov", "endbr64 sub", "endbr64 twice", "rex.w push", "rex.x push", "16-bit push"],
)
def test_a_function_that_would_be_single_stepped_is_not_worth_it(opened, first):
    data, places = library(openssl(write_internal=[first + RET]))
    inspection = inspect(opened, data)
    check_entries(inspection, "write", places, "emulated")
    assert by_op(inspection, "read")[0].placement == "internal"


ONE_PATH = [b"\x85\xf6", (JS, "over"), b"\x48\xff\xc7", ":over"]  # test esi, esi; js over; inc rdi
BEHIND_A_CALL = [(CALL, "ERR_new@plt")]
WRONG_PLAIN = {
    "rdi written": plain("read_internal", [b"\x48\x89\xc7"]),
    "edi written": plain("read_internal", [b"\x31\xff"]),
    "dil written": plain("read_internal", [b"\x40\xb7\x01"]),
    "rsi written": plain("read_internal", [b"\x48\x8d\x76\x01"]),
    "rsi popped": plain("read_internal", [b"\x50\x5e"]),
    "rdi and rsi moved by rep movsb": plain("read_internal", [b"\xf3\xa4"]),
    "rsi exchanged": plain("read_internal", [b"\x48\x96"]),
    "rdi written on one path": plain("read_internal", ONE_PATH),
    "behind another call": plain("read_internal", BEHIND_A_CALL),
    "count not extended": plain("read_internal", extend=b"\x90"),
    "count zero-extended": plain("read_internal", extend=b"\x89\xd2"),
    "count changed before": plain("read_internal", extend=b"\xff\xc2" + EXTEND),
    "count changed behind": plain("read_internal", [b"\x48\xff\xca"]),
    "count of another register": plain("read_internal", extend=b"\x48\x63\xd6"),
    "rcx from memory": plain("read_internal", rcx=b"\x48\x8b\x0f"),
    "rcx is the caller's": plain("read_internal", rcx=b"\x90"),
    "rcx above the return address": plain("read_internal", rcx=b"\x48\x8d\x4c\x24\x20"),
    "rcx indexed": plain("read_internal", rcx=b"\x48\x8d\x0c\x04"),
    "rcx in another segment": plain("read_internal", rcx=b"\x64\x48\x8b\x0c\x24"),
    "stack realigned": plain("read_internal", rcx=b"\x48\x83\xe4\xf0" + RCX_SLOT),
    "another slot returned": plain("read_internal", load=b"\x8b\x44\x24\x08"),
    "no slot returned": plain("read_internal", load=b"\x89\xd8"),
    "called twice": plain("read_internal", [(CALL, "read_internal"), RCX_SLOT, EXTEND]),
    "called through a pointer": plain("read_internal", [b"\xff\x10"]),
    "jumps through a pointer": plain("read_internal", [b"\xff\xe0"]),
    "system call": plain("read_internal", [b"\x0f\x05"]),
    "tail call": [RCX_SLOT, EXTEND, (JMP, "read_internal")],
    "no call": [b"\x31\xc0" + RET],
    "not an instruction": plain("read_internal", [b"\x06"]),
    "runs out of the function": [SUB_RSP + b"\x18", EXTEND, RCX_SLOT],
    "calls itself in a linkage stub": plain("ERR_new@plt"),
    "calls an exported function": plain("SSL_new"),
    "does not end": [SUB_RSP + b"\x18", ":again", b"\x90" * 900, (JMP, "again")],
}


@pytest.mark.parametrize("shape", WRONG_PLAIN.values(), ids=WRONG_PLAIN)
def test_what_ssl_read_does_wrong_leads_back_to_the_entries(opened, shape):
    data, places = library(openssl(SSL_read=shape))
    inspection = inspect(opened, data)
    check_entries(inspection, "read", places, "reads are probed at the exported functions")
    assert by_op(inspection, "write")[0].placement == "internal"


def test_a_path_that_comes_back_from_elsewhere_counts(opened):
    """The out-of-line part of a function may jump back to the call with other arguments."""
    hot = [
        SUB_RSP + b"\x18",
        TEST_EDX,
        RCX_SLOT,
        EXTEND,
        (JS, "cold"),
        ":call",
        (CALL, "read_internal"),
        TEST_EAX,
        b"\x0f\x4f\x04\x24",  # cmovg eax, [rsp]
        ADD_RSP + b"\x18" + RET,
    ]
    cold = [b"\x31\xf6", (JMP, "SSL_read:call")]
    data, places = library(openssl(SSL_read=hot, cold=cold))
    check_entries(inspect(opened, data), "read", places, "passes its arguments on to 0 functions")
    harmless = [b"\x31\xc0", (JMP, "SSL_read:call")]
    data, places = library(openssl(SSL_read=hot, cold=harmless))
    check_internal(inspect(opened, data), "read", places["read_internal"])


WRONG_EXTENDED = {
    "another function": extended("peek_internal"),
    "rcx written": extended("write_internal", before=b"\x31\xc9"),
    "rdx written": extended("write_internal", before=b"\xff\xc2"),
    "rdx sign-extended": extended("write_internal", before=EXTEND),
    "rdi written": extended("write_internal", before=b"\x48\x8b\x3f"),
    "result not tested": extended("write_internal", after=b"\x90"),
    "stores behind the call": extended("write_internal", after=TEST_EAX + b"\x89\x07"),
    "a tail call, as in OpenSSL 3.3": [b"\x49\x89\xc8\x31\xc9", (JMP, "write_internal")],
}


@pytest.mark.parametrize("shape", WRONG_EXTENDED.values(), ids=WRONG_EXTENDED)
def test_what_ssl_write_ex_does_wrong_leads_back_to_the_entries(opened, shape):
    data, places = library(openssl(SSL_write_ex=shape))
    check_entries(inspect(opened, data), "write", places, "writes are probed at the exported functions")


@pytest.mark.parametrize(
    "change",
    [
        {"SSL_peek": plain("read_internal")},
        {"SSL_peek_ex": extended("read_internal")},
        {"SSL_peek": [(JMP, "read_internal")]},
        {"SSL_peek": [TEST_EDX, (JS, "read_internal"), RET]},
        {"SSL_peek": [b"\xff\xe0"]},
    ],
    ids=["called", "called by _ex", "tail call", "conditional tail call", "cannot be followed"],
)
def test_a_peek_is_never_taken_for_a_read(opened, change):
    data, places = library(openssl(**change))
    check_entries(inspect(opened, data), "read", places, "SSL_peek")


def test_without_peek_or_ex_functions_nothing_is_proved(opened):
    for name in ("SSL_peek", "SSL_peek_ex"):
        functions = openssl()
        del functions[name]
        data, places = library(functions)
        check_entries(inspect(opened, data), "read", places, f"there is no {name}")
    functions = openssl()
    del functions["SSL_write_ex"]
    data, places = library(functions)
    [site] = by_op(inspect(opened, data), "write")
    assert (site.symbol, site.offset, site.flavour) == ("SSL_write", places["SSL_write"], "count")


def test_symbols_without_a_size_prove_nothing(opened):
    data, places = library(openssl(), sized=False)
    check_entries(inspect(opened, data), "read", places, "SSL_read: the symbol has no size")


def test_relocate_false_and_other_machines_get_entries_only(opened):
    data, places = library(openssl(SSL_free=[ENDBR64 + b"\x55\x5d" + RET]))
    [free] = by_op(inspect(opened, data), "free")
    assert free.offset == places["SSL_free"] + 4
    for inspection in (
        inspect(opened, data, relocate=False),
        inspect(opened, library(openssl(), machine=183)[0]),
    ):
        assert inspection.state == "attach"
        assert inspection.reason == ""
        assert {site.placement for site in inspection.sites} == {"entry"}
        assert [site.symbol for site in by_op(inspection, "write")] == ["SSL_write", "SSL_write_ex"]
    [free] = by_op(inspect(opened, data, relocate=False), "free")
    assert free.offset == places["SSL_free"]
