"""Places behind a function's first instruction: what is accepted, and above all what is not."""

from __future__ import annotations

import pytest

from spliffd.targets import recognise
from spliffd.targets.elf import Image
from tests.unit.targets.conftest import ENDBR64, JMP, RET, SUB_RSP, library

TEST_RDI = b"\x48\x85\xff"
LOAD = b"\x48\x8b\x07"  # mov rax, [rdi]
JE = b"\x0f\x84"
PUSH, POP = b"\x53", b"\x5b"
END = [PUSH, POP, ":out", b"\x31\xc0" + RET]
OTHERS = ("wolfSSL_write", "wolfSSL_connect", "wolfSSL_free")


def offset_of(opened, body, relocate=True) -> tuple[int, str]:
    """How far into wolfSSL_read the probe sits, and why."""
    functions = {name: [b"\x31\xc0" + RET, b"\x90" * 8] for name in OTHERS}
    data, places = library({"wolfSSL_read": [*body, b"\x90" * 8], **functions})
    with Image(opened(data)) as image:
        found = recognise.inspect(image, relocate=relocate)
    (site,) = [site for site in found.sites if site.symbol == "wolfSSL_read"]
    return site.offset - places["wolfSSL_read"], site.proof


@pytest.mark.parametrize(
    ("body", "skip"),
    [
        ([TEST_RDI, (JE, "out"), *END], 3),
        ([TEST_RDI, *END], 3),
        ([LOAD, TEST_RDI, (JE, "out"), *END], 6),
        ([ENDBR64, TEST_RDI, (JE, "out"), *END], 7),
        ([ENDBR64, *END], 4),
        (END, 0),
        ([*[LOAD] * 8, *END], 24),
    ],
    ids=["jump", "push", "load", "endbr64", "only-endbr64", "first", "eight"],
)
def test_behind_what_leaves_arguments_and_stack_alone(opened, body, skip):
    assert offset_of(opened, body)[0] == skip
    assert offset_of(opened, body, relocate=False)[0] == 0


@pytest.mark.parametrize(
    "body",
    [
        [SUB_RSP + b"\x18", TEST_RDI, (JE, "out"), *END],
        [b"\x48\x89\xf7", (JE, "out"), *END],  # mov rdi, rsi
        [b"\x31\xf6", (JE, "out"), *END],  # xor esi, esi
        [b"\x0f\xb6\xd2", (JE, "out"), *END],  # movzx edx, dl
        [b"\xb1\x00", (JE, "out"), *END],  # mov cl, 0
        [b"\xff\x20"],  # jmp [rax]
        [TEST_RDI, ":again", (JE, "out"), PUSH, POP, (JMP, "again"), ":out", RET],
        [LOAD, ":again", TEST_RDI, (JE, "out"), PUSH, POP, (JMP, "again"), ":out", RET],
        [TEST_RDI, (JE, "out"), b"\xff\x20", *END],
        [*[LOAD] * 9, *END],
        [LOAD, RET],
    ],
    ids=[
        "stack",
        "rdi",
        "rsi",
        "rdx",
        "rcx",
        "away",
        "loop-to-it",
        "loop-before-it",
        "pointer",
        "nine",
        "ret",
    ],
)
def test_what_is_not_proved_stays_at_the_first_instruction(opened, body):
    skip, proof = offset_of(opened, body)
    assert skip == 0
    assert proof == (
        "the arguments are intact at the first instruction of wolfSSL_read, which is single-stepped"
    )


def test_a_loop_to_the_first_instruction_passes_both(opened):
    assert (
        offset_of(opened, [":again", TEST_RDI, (JE, "out"), PUSH, POP, (JMP, "again"), ":out", RET])[0] == 3
    )
