"""The cheapest place near a function's beginning that sees the same as its first instruction.

Takes an ``Image`` and a function; returns how many bytes into it to probe, and why that is right. The kernel
emulates some instructions (push, conditional jumps, calls, nops) and single-steps all others at ten times
the cost. Where the first one is dear, a later one will do if what is proved holds:

1. It is reached from the beginning by instructions in a row, none of which branches, changes an argument
   register or moves the stack: there the arguments are intact, and the return address is on top of the
   stack, where a return probe looks for it.
2. No jump of the function, on any path from its beginning, leads behind its first instruction and up to
   there: it is passed once in a call, never without one.

What is not proved stays at the first instruction, which is dearer and never wrong. Never proves by name.
"""

from __future__ import annotations

from capstone import x86_const as x86

from spliffd.targets.elf import Function, Image
from spliffd.targets.x86 import MAX_LENGTH, UndecidedError, cheap_start, decode, is_emulated, walk, writes

MAX_LEADING = 8
"""Instructions before it: a test of an argument and a few loads, not more is found in practice."""

_NEEDED = {"rdi", "rsi", "rdx", "rcx", "rsp"}
"""The arguments that eBPF programs read, and the stack."""

_BRANCHES = (x86.X86_GRP_JUMP, x86.X86_GRP_CALL, x86.X86_GRP_RET, x86.X86_GRP_INT, x86.X86_GRP_PRIVILEGE)


def cheapest(image: Image, name: str, function: Function, starts: frozenset[int]) -> tuple[int, str]:
    """Bytes into ``function``, and the proof in one sentence. ``starts``: where known functions begin."""
    skip = cheap_start(image.code(function.address, MAX_LENGTH))
    if skip == 0:
        return 0, f"the arguments are intact at the first instruction of {name}"
    if skip:
        return skip, f"only endbr64 lies between the start of {name} and this instruction"
    try:
        skip = _behind(image, function, starts)
    except UndecidedError:
        skip = 0
    if not skip:
        return 0, f"the arguments are intact at the first instruction of {name}, which is single-stepped"
    return skip, (
        f"nothing before it in {name} branches, changes an argument or the stack, and no jump leads there"
    )


def _behind(image: Image, function: Function, starts: frozenset[int]) -> int:
    address = function.address
    for _ in range(MAX_LEADING):
        instruction = decode(image.code, address)
        if any(instruction.group(group) for group in _BRANCHES) or writes(instruction) & _NEEDED:
            return 0
        address += instruction.size
        if is_emulated(image.code(address, MAX_LENGTH)):
            jumps = walk(image.code, function.address, function.size, starts).jumps
            inside = any(function.address < target <= address for target in jumps)
            return 0 if inside else address - function.address
    return 0
