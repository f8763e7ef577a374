"""Map numbers become file descriptors, and nothing else in the code changes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spliffd.kernel.loader import relocate
from spliffd.kernel.maps import NUMBERS

LD_IMM64, MAP_FD = 0x18, 1
FDS = {name: 1000 + number for number, name in NUMBERS.items()}


def instruction(opcode: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhI", opcode, registers, offset, immediate)


def load(immediate: int, source: int, register: int = 1, high: int = 0) -> bytes:
    """A 64-bit immediate load: two slots."""
    return instruction(LD_IMM64, source << 4 | register, 0, immediate) + instruction(0, 0, 0, high)


RETURN = instruction(0xB7) + instruction(0x95)


@pytest.mark.parametrize("number", sorted(NUMBERS))
def test_every_map(number):
    code = instruction(0xBF, 0x61) + load(number, MAP_FD, register=2) + RETURN
    assert relocate(code, FDS) == instruction(0xBF, 0x61) + load(1000 + number, MAP_FD, register=2) + RETURN


def test_plain_constants_stay():
    number = min(NUMBERS)
    code = load(number, 0) + load(number, 0, high=7) + RETURN
    assert relocate(code, FDS) == code


def test_the_second_slot_is_no_instruction():
    # Its first byte is 0 in valid code; whatever stands there must not be taken for a load.
    code = instruction(LD_IMM64, 0, 0, 5) + instruction(LD_IMM64, MAP_FD << 4, 0, min(NUMBERS)) + RETURN
    assert relocate(code, FDS) == code


def test_a_number_that_is_no_map_is_an_error():
    with pytest.raises(KeyError):
        relocate(load(max(NUMBERS) + 1, MAP_FD) + RETURN, FDS)


@given(st.lists(st.tuples(st.sampled_from([0, *NUMBERS]), st.booleans()), max_size=20))
def test_length_and_all_but_map_numbers_stay(loads):
    code = b"".join(
        load(number, MAP_FD) if number else instruction(0xB7, 0, 0, 3 if flag else 4)
        for number, flag in loads
    )
    out = relocate(code, FDS)
    assert len(out) == len(code)
    for at in range(0, len(code), 8):
        assert out[at : at + 4] == code[at : at + 4]
