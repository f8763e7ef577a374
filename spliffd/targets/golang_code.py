"""Reads the machine code of one Go function: how it is called, and every place where it returns.

Takes the code of a whole function; returns ``Frame``: the calling convention, the cheap instruction to
probe at its beginning, and all RET instructions. Return probes are out of the question in Go: they put
their trampoline on the stack in place of the return address, and the runtime, which copies stacks and walks
them, crashes on it. Probes at each RET see the same and change nothing.
Every byte from the entry on must decode and every jump must stay inside, or ``UndecidedError`` is raised:
a return that is not seen would leave a call open. Never guesses.

Sources: src/cmd/compile/abi-internal.md of Go (rax, rbx, rcx carry arguments, r14 the goroutine, since 1.17),
src/cmd/internal/obj/x86/obj6.go, stacksplit (what a function begins with).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import capstone
from capstone import x86_const as x86

from spliffd.targets.x86 import UndecidedError, is_emulated, target_of

MAX_RETURNS = 24
"""Places where a function returns; the TLS handshake, which has most, has 16."""

_RET = b"\xc3"
_GUARD = 16
"""Offset of the stack guard in the goroutine's record (runtime.g.stackguard0)."""

CHECK = 40
"""Bytes that hold a whole stack check."""

_BEGINNINGS = (b"\x49\x3b", b"\x4c\x8d", b"\x64\x48\x8b")
"""cmp with r14, lea to r12, mov from fs."""

_decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_decoder.detail = True

Instruction = Any


class Frame(NamedTuple):
    """What to probe in one function; all in bytes from its entry."""

    registers: bool
    """Arguments and results in registers (Go 1.17 on); False: on the stack."""
    enter: int
    """An instruction that every call passes with its arguments intact, and with rsp as at the entry."""
    returns: tuple[int, ...]


def read(code: bytes) -> Frame:
    """Reads the function that is exactly ``code``. Raises UndecidedError with what is in the way."""
    instructions = list(_decoder.disasm(code, 0))
    decoded = sum(instruction.size for instruction in instructions)
    if decoded != len(code):
        raise UndecidedError(f"no instruction at +{decoded:#x}")
    registers, enter = prologue(instructions)
    starts = {instruction.address for instruction in instructions}
    returns = []
    for instruction in instructions:
        if instruction.group(x86.X86_GRP_RET):
            if bytes(instruction.bytes) != _RET:
                raise UndecidedError(f"an unusual return at +{instruction.address:#x}")
            returns.append(instruction.address)
        elif instruction.group(x86.X86_GRP_JUMP):
            target = target_of(instruction)
            if target is not None and target not in starts:
                raise UndecidedError(f"a jump out of the function at +{instruction.address:#x}")
    if not 0 < len(returns) <= MAX_RETURNS:
        raise UndecidedError(f"{len(returns)} returns, between 1 and {MAX_RETURNS} make sense")
    return Frame(registers, enter, tuple(returns))


def prologue(instructions: Sequence[Instruction]) -> tuple[bool, int]:
    """Whether arguments are in registers, and where the branch of the stack check is.

    A function begins by comparing rsp, or rsp less its frame in r12 (before 1.17: rax), with the guard of
    the goroutine, which is in r14 (before 1.17: loaded into rcx from fs:-8). The branch behind changes
    nothing, and the kernel emulates it. It is passed once more when the stack had to grow.
    """
    at = 0
    registers = True
    if _loads_goroutine(instructions[0]):
        registers, at = False, 1
    if instructions[at].id == x86.X86_INS_LEA:
        scratch, frame = instructions[at].operands
        spare = x86.X86_REG_R12 if registers else x86.X86_REG_RAX
        if scratch.reg != spare or frame.mem.base != x86.X86_REG_RSP or frame.mem.index:
            raise UndecidedError("does not begin with a stack check")
        at += 1
    else:
        spare = x86.X86_REG_RSP
    if at + 1 >= len(instructions):
        raise UndecidedError("does not begin with a stack check")
    compare, branch = instructions[at : at + 2]
    holder = x86.X86_REG_R14 if registers else x86.X86_REG_RCX
    if (
        compare.id != x86.X86_INS_CMP
        or compare.operands[0].type != x86.X86_OP_REG
        or compare.operands[0].reg != spare
        or compare.operands[1].type != x86.X86_OP_MEM
        or compare.operands[1].mem.base != holder
        or compare.operands[1].mem.index
        or compare.operands[1].mem.disp != _GUARD
        or branch.id != x86.X86_INS_JBE
        or not is_emulated(bytes(branch.bytes))
    ):
        raise UndecidedError("does not begin with a stack check")
    return registers, branch.address


def starts_function(code: bytes) -> bool:
    """Whether Go code with a stack check begins here."""
    if not code.startswith(_BEGINNINGS):
        return False  # nearly always, and decoding is dear
    try:
        prologue(list(_decoder.disasm(code, 0, 4)))
    except (UndecidedError, IndexError):
        return False
    return True


def _loads_goroutine(instruction: Instruction) -> bool:
    """Whether it is ``mov rcx, fs:[-8]``."""
    if instruction.id != x86.X86_INS_MOV or instruction.operands[1].type != x86.X86_OP_MEM:
        return False
    memory = instruction.operands[1].mem
    return bool(
        instruction.operands[0].reg == x86.X86_REG_RCX
        and memory.segment == x86.X86_REG_FS
        and not memory.base
        and not memory.index
        and memory.disp in (-8, 0xFFFFFFF8)
    )
