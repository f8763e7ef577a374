"""Walks the x86-64 instructions of one function and says what its calls are given.

Takes code bytes by address; returns, for every call a function can reach, which of its own arguments
are still in their registers there, on every path. It is an abstract interpretation over the five facts
that probe placement asks for (``Facts``), with a join at every instruction that several paths reach, so
an answer of "intact" is a proof. Whatever it does not understand raises ``UndecidedError``.
Never guesses, never follows a call, never reads more than ``MAX_INSTRUCTIONS`` instructions.

Sources: System V ABI for x86-64, 3.2.3 (which registers carry arguments, which survive a call); the
kernel's arch/x86/kernel/uprobes.c, push_setup_xol_ops and branch_setup_xol_ops (what is emulated).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import capstone
from capstone import x86_const as x86

MAX_INSTRUCTIONS = 800
"""SSL_peek with everything inlined has about 150; more than this is not one of the functions meant."""

MAX_LENGTH = 15
"""Longest x86 instruction, in bytes."""

ENDBR64 = b"\xf3\x0f\x1e\xfa"
_NOP5 = b"\x0f\x1f\x44\x00\x00"

CALLER, EXTENDED, LOST = "caller", "extended", "lost"
"""A register holds what the caller passed; its sign-extended 32-bit half; something else."""


class UndecidedError(Exception):
    """Nothing can be proved; the text says at which point."""


class Facts(NamedTuple):
    """What is known before an instruction, on every path to it."""

    rdi: str = CALLER
    rsi: str = CALLER
    rdx: str = CALLER
    rcx: str | int = CALLER
    """CALLER, LOST, or the address of a stack slot, in bytes from the return address."""
    depth: int | None = 0
    """Where rsp points, in bytes from the return address (negative: below it); None: unknown."""
    frame: int | None = None
    """The same for rbp."""

    def after_call(self) -> Facts:
        """What survives a call: the stack and rbp, not the argument registers."""
        return Facts(LOST, LOST, LOST, LOST, self.depth, self.frame)

    def join(self, other: Facts) -> Facts:
        """What holds on both of two paths."""
        return Facts(
            self.rdi if self.rdi == other.rdi else LOST,
            self.rsi if self.rsi == other.rsi else LOST,
            self.rdx if self.rdx == other.rdx else LOST,
            self.rcx if self.rcx == other.rcx else LOST,
            self.depth if self.depth == other.depth else None,
            self.frame if self.frame == other.frame else None,
        )


class Call(NamedTuple):
    """One call instruction: where it is, what it calls (None: through a pointer), where it returns to."""

    address: int
    target: int | None
    facts: Facts
    returns_to: int


class Walk(NamedTuple):
    """All calls a function can reach, and all direct jumps it makes, wherever they lead."""

    calls: list[Call]
    jumps: frozenset[int]


Fetch = Callable[[int, int], bytes]
Instruction = Any

_decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_decoder.detail = True

_FAMILY = {
    register: name
    for name, registers in {
        "rdi": (x86.X86_REG_RDI, x86.X86_REG_EDI, x86.X86_REG_DI, x86.X86_REG_DIL),
        "rsi": (x86.X86_REG_RSI, x86.X86_REG_ESI, x86.X86_REG_SI, x86.X86_REG_SIL),
        "rdx": (x86.X86_REG_RDX, x86.X86_REG_EDX, x86.X86_REG_DX, x86.X86_REG_DL, x86.X86_REG_DH),
        "rcx": (x86.X86_REG_RCX, x86.X86_REG_ECX, x86.X86_REG_CX, x86.X86_REG_CL, x86.X86_REG_CH),
        "rsp": (x86.X86_REG_RSP, x86.X86_REG_ESP, x86.X86_REG_SP, x86.X86_REG_SPL),
        "rbp": (x86.X86_REG_RBP, x86.X86_REG_EBP, x86.X86_REG_BP, x86.X86_REG_BPL),
        "rax": (x86.X86_REG_RAX, x86.X86_REG_EAX, x86.X86_REG_AX, x86.X86_REG_AL, x86.X86_REG_AH),
    }.items()
    for register in registers
}
_STOPS = {x86.X86_INS_UD2, x86.X86_INS_HLT, x86.X86_INS_INT3}


def is_emulated(code: bytes) -> bool:
    """Whether the kernel emulates the first instruction of ``code`` instead of single-stepping it."""
    if code[:1] == b"\x41":
        return code[1:2] != b"" and 0x50 <= code[1] <= 0x57
    if code[:5] == _NOP5:
        return True
    if code[:1] == b"\x0f":
        return code[1:2] != b"" and 0x80 <= code[1] <= 0x8F
    return code[:1] != b"" and (
        0x50 <= code[0] <= 0x57 or 0x70 <= code[0] <= 0x7F or code[0] in b"\x90\xe8\xe9\xeb"
    )


def cheap_start(code: bytes) -> int | None:
    """How far into a function a probe is cheap and sees the same as at its first byte.

    0 where the first instruction is emulated; 4 behind an ``endbr64``, which changes no register and
    not the stack, so that the return address is still where a return probe looks for it; else None.
    """
    skip = len(ENDBR64) if code.startswith(ENDBR64) else 0
    return skip if is_emulated(code[skip:]) else None


def decode(fetch: Fetch, address: int) -> Instruction:
    """The instruction at ``address``, in detail. Raises UndecidedError where none is."""
    for instruction in _decoder.disasm(fetch(address, MAX_LENGTH), address, 1):
        return instruction
    raise UndecidedError(f"no instruction at {address:#x}")


def writes(instruction: Instruction) -> set[str]:
    """The registers of interest that an instruction may change."""
    return {_FAMILY[register] for register in instruction.regs_access()[1] if register in _FAMILY}


def target_of(instruction: Instruction) -> int | None:
    """Where a direct call or jump leads; None for one through a register or memory."""
    operand = instruction.operands[0]
    return int(operand.imm) if operand.type == x86.X86_OP_IMM else None


def slot_of(operand: Any, facts: Facts) -> int | None:
    """The stack slot that a memory operand names, in bytes from the return address, or None."""
    memory = operand.mem
    if operand.type != x86.X86_OP_MEM or memory.index != 0 or memory.segment != 0:
        return None
    base = {x86.X86_REG_RSP: facts.depth, x86.X86_REG_RBP: facts.frame}.get(memory.base)
    return None if base is None else base + int(memory.disp)


def step(instruction: Instruction, facts: Facts) -> Facts:
    """The facts after an instruction that is neither a call nor a jump."""
    kind, operands = instruction.id, instruction.operands
    changed = writes(instruction)
    if kind == x86.X86_INS_PUSH:
        return facts._replace(depth=None if facts.depth is None else facts.depth - 8)
    if kind == x86.X86_INS_MOVSXD and _names(instruction, operands) == ["rdx", "edx"]:
        return facts._replace(rdx=EXTENDED if facts.rdx in (CALLER, EXTENDED) else LOST)
    result = facts
    if "rdi" in changed:
        result = result._replace(rdi=LOST)
    if "rsi" in changed:
        result = result._replace(rsi=LOST)
    if "rdx" in changed:
        result = result._replace(rdx=LOST)
    if "rcx" in changed:
        result = result._replace(rcx=_address(instruction, operands, facts, "rcx"))
    if "rbp" in changed:
        frame = _address(instruction, operands, facts, "rbp")
        result = result._replace(frame=None if frame == LOST else frame)
    if "rsp" in changed:
        result = result._replace(depth=_depth(instruction, operands, facts))
    return result


def _names(instruction: Instruction, operands: Any) -> list[str]:
    return [instruction.reg_name(o.reg) if o.type == x86.X86_OP_REG else "" for o in operands]


def _address(instruction: Instruction, operands: Any, facts: Facts, register: str) -> Any:
    """The stack address that ``mov reg, rsp``, ``mov reg, rbp`` or ``lea reg, [...]`` gives, or LOST."""
    names = _names(instruction, operands)
    value: int | None = None
    if instruction.id == x86.X86_INS_LEA and names[0] == register:
        value = slot_of(operands[1], facts)
    elif instruction.id == x86.X86_INS_MOV and names == [register, "rsp"]:
        value = facts.depth
    elif instruction.id == x86.X86_INS_MOV and names == [register, "rbp"]:
        value = facts.frame
    return LOST if value is None else value


def _depth(instruction: Instruction, operands: Any, facts: Facts) -> int | None:
    if facts.depth is None:
        return None
    if instruction.id == x86.X86_INS_POP and "rsp" not in _names(instruction, operands):
        return facts.depth + 8
    if instruction.id in (x86.X86_INS_SUB, x86.X86_INS_ADD) and operands[1].type == x86.X86_OP_IMM:
        amount = int(operands[1].imm)
        return facts.depth - amount if instruction.id == x86.X86_INS_SUB else facts.depth + amount
    if instruction.id == x86.X86_INS_LEA:
        return slot_of(operands[1], facts)
    return None


def walk(fetch: Fetch, start: int, size: int, starts: frozenset[int]) -> Walk:
    """Follows every path of the function at ``start`` (``size`` bytes) until it returns.

    ``starts`` are the addresses of known functions: a jump to one is a tail call and ends the path, and
    so does falling into one behind a call (that call does not return, such as __stack_chk_fail).
    """
    if size <= 0:
        raise UndecidedError("the symbol has no size")
    known: dict[int, Facts] = {start: Facts()}
    decoded: dict[int, Instruction] = {}
    jumps: set[int] = set()
    waiting = [start]
    while waiting:
        address = waiting.pop()
        if address not in decoded:
            if len(decoded) >= MAX_INSTRUCTIONS:
                raise UndecidedError(f"more than {MAX_INSTRUCTIONS} instructions")
            decoded[address] = decode(fetch, address)
        instruction = decoded[address]
        for successor, facts in _successors(instruction, known[address], start, size, starts, jumps):
            before = known.get(successor)
            after = facts if before is None else before.join(facts)
            if after != before:
                known[successor] = after
                waiting.append(successor)
    calls = [
        Call(address, target_of(instruction), known[address], address + instruction.size)
        for address, instruction in sorted(decoded.items())
        if instruction.id == x86.X86_INS_CALL
    ]
    return Walk(calls, frozenset(jumps))


def _successors(
    instruction: Instruction, facts: Facts, start: int, size: int, starts: frozenset[int], jumps: set[int]
) -> list[tuple[int, Facts]]:
    kind, following = instruction.id, instruction.address + instruction.size
    if instruction.group(x86.X86_GRP_RET) or kind in _STOPS:
        return []
    if kind == x86.X86_INS_CALL:
        outside = not start <= following < start + size
        if outside and (following in starts or following == start + size):
            return []
        return [(following, facts.after_call())]
    if instruction.group(x86.X86_GRP_JUMP):
        target = target_of(instruction)
        if target is None:
            raise UndecidedError(f"a jump through a pointer at {instruction.address:#x}")
        jumps.add(target)
        taken = [] if target in starts and target != start else [(target, facts)]
        return taken if kind == x86.X86_INS_JMP else [*taken, (following, facts)]
    if not start <= following < start + size and following in starts:
        raise UndecidedError(f"runs into another function at {following:#x}")
    if instruction.group(x86.X86_GRP_INT) or instruction.group(x86.X86_GRP_PRIVILEGE):
        raise UndecidedError(f"an unexpected instruction at {instruction.address:#x}")
    return [(following, step(instruction, facts))]
