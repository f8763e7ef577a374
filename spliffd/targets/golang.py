"""Recognises Go programs that speak TLS by crypto/tls, and says at which instructions to probe them.

Takes an ``Image``; returns an ``Inspection``, or None for what is no Go program. Go links its TLS into every
program, so the program itself is the library; stripped ones keep the line table, by which functions are
found (``golang_pclntab``). Each function gets one site at its beginning and one at each RET
(``golang_code``); a return probe never.

Where the code begins is not always said in the file: the one place at which all the functions begin with
Go's stack check is it; with two such places the file is refused. That check also tells the calling
convention, so the version is for people only. Never reads symbols where the line table answers; never takes
a function that it cannot read whole.
"""

from __future__ import annotations

import re

from spliffd.targets import golang_code
from spliffd.targets.elf import Function, Image, UnreadableError
from spliffd.targets.golang_pclntab import SECTIONS, LineTable
from spliffd.targets.sites import Flavour, Inspection, Op, Site
from spliffd.targets.x86 import UndecidedError

_CONN = "crypto/tls.(*Conn)."

_FUNCTIONS: dict[str, tuple[Op, bool]] = {
    "Read": ("read", True),
    "Write": ("write", True),
    "clientHandshake": ("connect", True),
    "serverHandshake": ("accept", True),
    "Close": ("free", False),
}
"""Method of *tls.Conn -> what it does, and whether its result is needed. Handshake itself is called by each
Read and Write and mostly finds that all is done; the two that it leads to run once."""

ESSENTIAL = ("Read", "Write", "Close")
"""A program that never uses one of the handshakes does not have it: the linker leaves it out."""

TEXT_SEARCH = 64 << 10
"""How far behind the start of .text Go's code may begin: with cgo, C's start-up code goes first."""

TEXT_ALIGNMENT = 16

MAX_BUILD_INFO = 4096
"""Bytes of build information that are looked at; the version stands at its beginning."""

_VERSION = re.compile(rb"go(\d{1,2}\.\d{1,3}[0-9A-Za-z.+-]{0,24})")


def is_go(image: Image) -> bool:
    """Whether the file is a Go program."""
    return image.section(".go.buildinfo", *SECTIONS) is not None


def inspect(image: Image) -> Inspection | None:
    """Places the probes of a Go program; None where no Go program, or one without crypto/tls, is."""
    if not is_go(image):
        return None
    version = _version(image)
    try:
        functions = _functions(image)
    except UnreadableError as error:
        return Inspection("refused", "go", version, image.build_id, reason=f"a Go program: {error}")
    if not functions:
        return None
    missing = [name for name in ESSENTIAL if name not in functions]
    if missing:
        if len(missing) == len(ESSENTIAL):
            return None
        reason = f"a Go program without {_CONN}{missing[0]}"
        return Inspection("refused", "go", version, image.build_id, reason=reason)
    if image.machine != "x86-64":
        reason = f"a Go program for {image.machine}: only x86-64 is supported"
        return Inspection("refused", "go", version, image.build_id, reason=reason)
    sites: list[Site] = []
    try:
        for name, function in functions.items():
            sites += _sites(image, name, function)
    except (UndecidedError, UnreadableError) as error:
        return Inspection("refused", "go", version, image.build_id, reason=f"a Go program: {error}")
    return Inspection("attach", "go", version, image.build_id, sites)


def _functions(image: Image) -> dict[str, Function]:
    """The methods by name, with address and size; from the line table, else from the symbols."""
    names = tuple(_CONN + name for name in _FUNCTIONS)
    try:
        table = LineTable(image)
        found = table.find(names)
        if not found:
            return {}
        text = _text_start(image, table, [function.start for function in found.values()])
        functions = {name: Function(text + start, size) for name, (start, size) in found.items()}
    except UnreadableError:
        functions = image.functions(names)
        if not functions:
            raise
    return {name.removeprefix(_CONN): function for name, function in functions.items()}


def _text_start(image: Image, table: LineTable, starts: list[int]) -> int:
    """What to add to the line table's entries: where all of ``starts`` are beginnings of Go functions."""
    if image.machine != "x86-64":
        return table.text_start
    said = table.text_start if table.relative else 0
    if (said or not table.relative) and _fits(image, said, starts):
        return said
    text = image.section(".text")
    places = range(text.address, text.address + min(text.size, TEXT_SEARCH), TEXT_ALIGNMENT) if text else ()
    fitting = [place for place in places if _fits(image, place, starts)]
    if len(fitting) != 1:
        raise UnreadableError(f"the line table fits the code at {len(fitting)} places")
    return fitting[0]


def _fits(image: Image, text: int, starts: list[int]) -> bool:
    return all(golang_code.starts_function(image.code(text + start, golang_code.CHECK)) for start in starts)


def _sites(image: Image, name: str, function: Function) -> list[Site]:
    op, result = _FUNCTIONS[name]
    symbol = _CONN + name
    try:
        frame = golang_code.read(image.code(function.address, function.size))
    except UndecidedError as error:
        raise UndecidedError(f"{symbol}: {error}") from None
    flavour: Flavour = "register" if frame.registers else "stack"
    proof = f"only the stack check lies between the start of {symbol} and this branch"
    offset = image.offset_of(function.address)
    enter = Site(symbol, offset + frame.enter, False, op, flavour, "entry", proof)
    if not result:
        return [enter]
    proof = f"one of the {len(frame.returns)} RET instructions of {symbol}, all of it decoded"
    return [
        enter,
        *(Site(symbol, offset + at, False, op, flavour, "return", proof) for at in frame.returns),
    ]


def _version(image: Image) -> str:
    """The compiler's version, "1.27.3"; up to Go 1.17 it is behind a pointer, and looked for in the data."""
    section = image.section(".go.buildinfo")
    if section is None:
        return ""
    match = _VERSION.search(image.content(section.offset, min(section.size, MAX_BUILD_INFO)))
    return match[1].decode("ascii") if match else ""
