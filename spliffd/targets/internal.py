"""Finds the function that SSL_X and SSL_X_ex share, and proves that it is the right one.

Takes an ``Image`` and its functions; returns one ``Site`` on ``ssl_X_internal`` or raises
``UndecidedError`` with the point at which the proof fails. What is proved, by walking instructions:

1. SSL_X calls it with its own rdi (SSL *) and rsi (buffer), the count sign-extended, and in rcx the
   address of a slot in its own stack frame; if the result is > 0, SSL_X returns what is in that slot.
   So a positive result means success, and the byte count is then at the fourth argument.
2. SSL_X_ex calls the same function with all four of its arguments untouched and returns its result
   with nothing done but a clamp: the arguments mean the same there.
3. It is not exported, not a linkage stub, and nothing that SSL_peek or SSL_peek_ex calls or jumps to.
4. It begins with an instruction that the kernel emulates, with at most an ``endbr64`` before it: there
   the arguments are intact and the return address is on top of the stack.
Never proves by name: the function has none in a stripped library.
"""

from __future__ import annotations

from typing import Any

from capstone import x86_const as x86

from spliffd.targets.elf import Function, Image
from spliffd.targets.sites import Op, Site
from spliffd.targets.x86 import (
    CALLER,
    EXTENDED,
    MAX_LENGTH,
    Call,
    Facts,
    UndecidedError,
    Walk,
    cheap_start,
    decode,
    slot_of,
    step,
    target_of,
    walk,
    writes,
)

MAX_AFTER_CALL = 32
"""Instructions behind the call that are looked at: compilers need 3 to reach the result's use."""

_IF_NOT_POSITIVE, _IF_POSITIVE = x86.X86_INS_JLE, x86.X86_INS_JG
_RESULT = (x86.X86_REG_EAX, x86.X86_REG_RAX)


def find(image: Image, functions: dict[str, Function], op: Op) -> Site:
    """The site on the internal function behind SSL_read ("read") or SSL_write ("write")."""
    plain, extended = f"SSL_{op}", f"SSL_{op}_ex"
    starts = image.exported_addresses() | {function.address for function in functions.values()}
    callee = _shared(image, plain, _calls(image, functions, plain, starts), starts, 1)
    other = _shared(image, extended, _calls(image, functions, extended, starts), starts, 2)
    if callee.target != other.target:
        raise UndecidedError(f"{plain} and {extended} do not call the same function")
    target = callee.target
    assert target is not None
    _returns_slot(image, plain, callee)
    _returns_result(image, extended, other)
    if op == "read":
        _not_peeked(image, functions, starts, target)
    skip = cheap_start(image.code(target, MAX_LENGTH))
    if skip is None:
        raise UndecidedError(
            f"the function behind {plain} does not begin with an instruction that is emulated"
        )
    proof = (
        f"{plain} and {extended} both call {target:#x} with their SSL, buffer and count in place and a "
        f"pointer to the byte count as fourth argument; it begins with an emulated instruction"
    )
    return Site(
        f"ssl_{op}_internal", image.offset_of(target + skip), True, op, "pointer", "internal", proof,
        witnesses=tuple(image.offset_of(functions[name].address) for name in (plain, extended)),
    )  # fmt: skip


def _calls(image: Image, functions: dict[str, Function], name: str, starts: frozenset[int]) -> Walk:
    function = functions.get(name)
    if function is None:
        raise UndecidedError(f"there is no {name}")
    try:
        return walk(image.code, function.address, function.size, starts)
    except UndecidedError as error:
        raise UndecidedError(f"{name}: {error}") from None


def _shared(image: Image, name: str, found: Walk, starts: frozenset[int], form: int) -> Call:
    """The one call that passes all arguments on, in the plain (1) or the extended (2) form."""
    passing = [call for call in found.calls if call.target is not None and _passes(call.facts, form)]
    own = [call for call in passing if call.target not in starts and not image.in_plt(call.target or 0)]
    targets = {call.target for call in own}
    if len(targets) != 1:
        raise UndecidedError(f"{name} passes its arguments on to {len(targets)} functions")
    everywhere = [call for call in found.calls if call.target in targets]
    if len(everywhere) != 1:
        raise UndecidedError(f"{name} calls the internal function from {len(everywhere)} places")
    return own[0]


def _passes(facts: Facts, form: int) -> bool:
    if facts.rdi != CALLER or facts.rsi != CALLER:
        return False
    if form == 1:
        # A slot of the own frame: below the return address.
        return facts.rdx == EXTENDED and isinstance(facts.rcx, int) and facts.rcx < 0
    return facts.rdx == CALLER and facts.rcx == CALLER


def _returns_slot(image: Image, name: str, call: Call) -> None:
    """Shows that SSL_X returns the slot's content where the result is > 0."""
    tested = False
    facts, address = call.facts.after_call(), call.returns_to
    for _ in range(MAX_AFTER_CALL):
        instruction = decode(image.code, address)
        if not tested:
            tested = _tests_result(instruction)
            if not tested and (_branches(instruction) or "rax" in writes(instruction)):
                break
        elif instruction.id == x86.X86_INS_CMOVG:
            if _loads_slot(instruction, call, facts):
                return
            break
        elif instruction.id in (_IF_NOT_POSITIVE, _IF_POSITIVE):
            following = instruction.address + instruction.size
            positive = target_of(instruction) if instruction.id == _IF_POSITIVE else following
            load = decode(image.code, positive or 0)
            if load.id == x86.X86_INS_MOV and _loads_slot(load, call, facts):
                return
            break
        elif _branches(instruction) or "rax" in writes(instruction) or _sets_flags(instruction):
            break
        facts = step(instruction, facts)
        address = instruction.address + instruction.size
    raise UndecidedError(f"{name} is not seen to return the byte count where the result is > 0")


def _returns_result(image: Image, name: str, call: Call) -> None:
    """Shows that SSL_X_ex does nothing behind the call but clamp the result and return."""
    tested = False
    waiting, seen = [call.returns_to], set[int]()
    while waiting:
        address = waiting.pop()
        if address in seen:
            continue
        seen.add(address)
        instruction = decode(image.code, address)
        tested = tested or _tests_result(instruction)
        if instruction.group(x86.X86_GRP_RET):
            continue
        stores = any(
            operand.type == x86.X86_OP_MEM and operand.access & 2 for operand in instruction.operands
        )
        if instruction.group(x86.X86_GRP_CALL) or stores or len(seen) > MAX_AFTER_CALL:
            raise UndecidedError(f"{name} does more than return the result")
        if instruction.group(x86.X86_GRP_JUMP):
            target = target_of(instruction)
            if target is None:
                raise UndecidedError(f"{name} jumps through a pointer")
            waiting.append(target)
        if instruction.id != x86.X86_INS_JMP:
            waiting.append(instruction.address + instruction.size)
    if not tested:
        raise UndecidedError(f"{name} does not test the result")


def _not_peeked(image: Image, functions: dict[str, Function], starts: frozenset[int], target: int) -> None:
    for name in ("SSL_peek", "SSL_peek_ex"):
        found = _calls(image, functions, name, starts)
        if target in found.jumps or any(call.target == target for call in found.calls):
            raise UndecidedError(f"{name} uses the same function: it cannot be told from a read")


def _tests_result(instruction: Any) -> bool:
    operands = instruction.operands
    if instruction.id == x86.X86_INS_TEST:
        return all(operand.type == x86.X86_OP_REG and operand.reg == _RESULT[0] for operand in operands)
    return bool(
        instruction.id == x86.X86_INS_CMP
        and operands[0].type == x86.X86_OP_REG
        and operands[0].reg == _RESULT[0]
        and operands[1].type == x86.X86_OP_IMM
        and operands[1].imm == 0
    )


def _loads_slot(instruction: Any, call: Call, facts: Facts) -> bool:
    destination, source = instruction.operands
    into_result = destination.type == x86.X86_OP_REG and destination.reg in _RESULT
    return into_result and slot_of(source, facts) == call.facts.rcx


def _branches(instruction: Any) -> bool:
    return any(instruction.group(group) for group in (x86.X86_GRP_JUMP, x86.X86_GRP_CALL, x86.X86_GRP_RET))


def _sets_flags(instruction: Any) -> bool:
    return x86.X86_REG_EFLAGS in instruction.regs_access()[1]
