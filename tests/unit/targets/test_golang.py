"""Go programs: line tables of every form, stripped, position-independent, with cgo, broken, and hostile."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable

import pytest

from spliffd.targets.inspector import inspect_fd
from spliffd.targets.sites import Inspection, check

Open = Callable[[bytes], int]

TEXT = 0x401000
TEXT_OFFSET = 0x1000
TABLE_OFFSET = 0x3000
METHODS = ("Close", "Read", "Write", "clientHandshake")
NAMES = ["runtime.main", *(f"crypto/tls.(*Conn).{name}" for name in METHODS), "main.main"]

# cmp rsp, [r14+16]; jbe grow; test eax, eax; je +1; ret; ret; grow: call morestack; jmp start
REGISTERS = bytes.fromhex("493b6610 7606 85c0 7401 c3 c3 e800000000 ebed")
# the same, behind mov rcx, fs:[-8] and with cmp rsp, [rcx+16]
STACK = bytes.fromhex("64488b0c25f8ffffff 483b6110 7606 85c0 7401 c3 c3 e800000000 ebe4")
# lea r12, [rsp-400]; cmp r12, [r14+16]; jbe (long); ret; grow: call morestack; jmp start
LARGE_FRAME = bytes.fromhex("4c8da42470feffff 4d3b6610 0f8601000000 c3 e800000000 ebe6")

RET_8 = bytes.fromhex("493b6610 7607 85c0 7400 c20800 e800000000 ebec")

MAGIC = {"1.2": 0xFFFFFFFB, "1.16": 0xFFFFFFFA, "1.18": 0xFFFFFFF0, "1.20": 0xFFFFFFF1}


def padded(code: bytes) -> bytes:
    return code + b"\xcc" * (-len(code) % 32)


def line_table(form: str, entries: list[int], end: int, text_start: int, names: list[str]) -> bytes:
    """A line table of one form; ``entries`` are addresses, or offsets from the code (1.18 on)."""
    head = struct.pack("<IBBBB", MAGIC[form], 0, 0, 1, 8)
    size = 4 if form in ("1.18", "1.20") else 8
    pack = "<I" if size == 4 else "<Q"
    texts, places = b"\0", []
    for name in names:
        places.append(len(texts))
        texts += name.encode() + b"\0"
    rows_at = {"1.2": 16, "1.16": 64, "1.18": 72, "1.20": 72}[form]
    names_at = rows_at + 2 * size * len(entries) + size + 4 + (size + 8) * len(entries)
    base = 0 if form == "1.2" else rows_at
    if form == "1.2":
        places = [names_at + place for place in places]
        words = [len(entries)]
    elif form == "1.16":
        words = [len(entries), 0, names_at, names_at, names_at, names_at, rows_at]
    else:
        words = [len(entries), 0, text_start, names_at, names_at, names_at, names_at, rows_at]
    rows, records = b"", b""
    records_at = rows_at + 2 * size * len(entries) + size + 4
    for entry, place in zip(entries, places, strict=True):
        rows += struct.pack(pack, entry) + struct.pack(pack, records_at + len(records) - base)
        records += struct.pack(pack, entry) + struct.pack("<II", place, 0)
    rows += struct.pack(pack, end) + b"\0" * 4
    return head + struct.pack(f"<{len(words)}Q", *words) + rows + records + texts


def program(
    form: str = "1.20",
    *,
    text_start: int = TEXT,
    before: bytes = b"",
    names: list[str] = NAMES,
    table_name: str = ".gopclntab",
    machine: int = 62,
    change: Callable[[bytes], bytes] = bytes,
    **code: bytes,
) -> tuple[bytes, dict[str, int]]:
    """A Go program and where in it, as file offsets, each function lies; ``code`` replaces a method's."""
    usual = REGISTERS if form in ("1.18", "1.20") else STACK
    text, entries = before, []
    for name in names:
        entries.append(len(text))
        text += padded(code.get(name.rpartition(".")[2], usual)) + bytes(32) * (len(entries) ** 2)
    offset = -len(before) if form in ("1.18", "1.20") else TEXT
    table = line_table(form, [entry + offset for entry in entries], len(text) + offset, text_start, names)
    table = change(table)
    info = b"\xff Go buildinf:\x08\x02" + b"\0" * 16 + b"\x08go1.27.3"
    section_names = f"\0.text\0{table_name}\0.go.buildinfo\0.names\0".encode()
    image = bytearray(TEXT_OFFSET)
    image += text
    image += b"\0" * (TABLE_OFFSET - len(image))
    image += table
    info_at = len(image)
    image += info
    names_at = len(image)
    image += section_names
    headers_at = len(image)
    row = struct.Struct("<IIQQQQIIQQ").pack
    place = [section_names.index(name) for name in (b".text", table_name.encode(), b".go.b", b".names")]
    image += bytes(64)
    image += row(place[0], 1, 6, TEXT, TEXT_OFFSET, len(text), 0, 0, 16, 0)
    image += row(place[1], 1, 2, 0x600000, TABLE_OFFSET, len(table), 0, 0, 32, 0)
    image += row(place[2], 1, 3, 0x700000, info_at, len(info), 0, 0, 16, 0)
    image += row(place[3], 3, 0, 0, names_at, len(section_names), 0, 0, 1, 0)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    image[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH", identity, 2, machine, 1, TEXT, 64, headers_at, 0, 64, 56, 1, 64, 5, 4
    )
    image[64:120] = struct.pack("<IIQQQQQQ", 1, 5, TEXT_OFFSET, TEXT, TEXT, len(text), len(text), 4096)
    at = {name.rpartition(".")[2]: TEXT_OFFSET + entry for name, entry in zip(names, entries, strict=True)}
    return bytes(image), at


def inspect(opened: Open, data: bytes) -> Inspection:
    found = inspect_fd(opened(data), True)
    assert check(found, len(data)) == ""
    return found


@pytest.mark.parametrize("form", MAGIC)
def test_a_stripped_program_of_every_form(opened: Open, form: str):
    data, at = program(form)
    found = inspect(opened, data)
    assert (found.state, found.library, found.version, found.reason) == ("attach", "go", "1.27.3", "")
    enter, first = (4, 10) if form in ("1.18", "1.20") else (13, 19)
    assert {(site.symbol, site.op, site.placement, site.offset) for site in found.sites} == {
        ("crypto/tls.(*Conn).Close", "free", "entry", at["Close"] + enter),
        *(
            (f"crypto/tls.(*Conn).{name}", op, placement, at[name] + where)
            for name, op in (("Read", "read"), ("Write", "write"), ("clientHandshake", "connect"))
            for placement, where in (("entry", enter), ("return", first), ("return", first + 1))
        ),
    }
    assert {site.flavour for site in found.sites} == {"register" if enter == 4 else "stack"}
    assert not any(site.return_probe for site in found.sites)  # the runtime would crash on one


def test_a_large_frame_is_compared_through_a_register(opened: Open):
    data, at = program(clientHandshake=LARGE_FRAME)
    sites = {site.placement: site for site in inspect(opened, data).sites if site.op == "connect"}
    assert sites["entry"].offset == at["clientHandshake"] + 12
    assert sites["return"].offset == at["clientHandshake"] + 18


@pytest.mark.parametrize("table_name", [".gopclntab", ".data.rel.ro.gopclntab"])
@pytest.mark.parametrize("before", [b"", b"\x31\xed" * 400], ids=["go alone", "c start-up code first"])
def test_a_table_that_does_not_say_where_the_code_is(opened: Open, table_name: str, before: bytes):
    data, at = program("1.20", text_start=0, before=before, table_name=table_name)
    found = inspect(opened, data)
    assert found.state == "attach"
    assert {site.offset for site in found.sites if site.op == "free"} == {at["Close"] + 4}


def test_a_table_among_other_constants(opened: Open):
    """The system's linker merges the table of a position-independent program with cgo into a larger section."""
    data, at = program(text_start=0, table_name=".data.rel.ro", change=lambda table: b"\1" * 96 + table)
    found = inspect(opened, data)
    assert {site.offset for site in found.sites if site.op == "free"} == {at["Close"] + 4}


def test_a_go_program_without_tls_is_none(opened: Open):
    data, _ = program(names=["runtime.main", "main.main"])
    found = inspect(opened, data)
    assert (found.state, found.sites) == ("skipped", [])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (REGISTERS[:6] + b"\x06" + REGISTERS[7:], "Read: no instruction at +0x6"),  # not in 64-bit mode
        (RET_8, "Read: an unusual return at +0xa"),
        (REGISTERS[:8] + b"\x74\x7f" + REGISTERS[10:], "Read: a jump out of the function at +0x8"),
        (REGISTERS[:8] + b"\x74\x06" + REGISTERS[10:], "Read: a jump out of the function at +0x8"),
        (REGISTERS[:10] + b"\x90\x90" + REGISTERS[12:], "Read: 0 returns, between 1 and 24 make sense"),
        (REGISTERS[:6] + b"\xc3" * 25, "Read: 25 returns, between 1 and 24 make sense"),
        (b"\x90" + REGISTERS, "the line table fits the code at 0 places"),
        (REGISTERS.replace(b"\x66\x10", b"\x66\x18", 1), "the line table fits the code at 0 places"),
    ],
    ids=["undecodable", "ret n", "out", "inside an instruction", "no ret", "many rets", "nop", "other guard"],
)
def test_code_that_is_not_understood_is_refused(opened: Open, code: bytes, reason: str):
    found = inspect(opened, program(Read=code)[0])
    assert (found.state, found.library, found.sites) == ("refused", "go", [])
    assert found.reason.endswith(reason), found.reason


def test_without_a_method_it_is_refused(opened: Open):
    found = inspect(opened, program(names=[name for name in NAMES if not name.endswith("Write")])[0])
    assert (found.state, found.reason) == ("refused", "a Go program without crypto/tls.(*Conn).Write")


def test_another_machine_is_refused_by_name(opened: Open):
    found = inspect(opened, program(machine=183)[0])
    assert (found.state, found.reason) == (
        "refused",
        "a Go program for aarch64: only x86-64 is supported",
    )


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, b"\xf2", "a line table of an unknown form (0xfffffff2)"),
        (7, b"\x04", "a line table of an unknown form (0xfffffff1)"),
        (8, b"\xff" * 8, "functions, at most 4194304"),
        (8, b"\xff\xff\x3f", "a line table that points outside of itself"),
        (32, b"\xff" * 8, "a line table whose parts lie outside of it"),
        (64, b"\xff" * 8, "a line table whose parts lie outside of it"),
    ],
)
def test_a_broken_table_says_what_is_broken(opened: Open, at: int, value: bytes, reason: str):
    data, _ = program(change=lambda table: table[:at] + value + table[at + len(value) :])
    found = inspect(opened, data)
    assert found.state == "refused"
    assert found.reason.startswith("a Go program: ")
    assert found.reason.endswith(reason), found.reason


def test_what_leads_to_no_function_is_no_function(opened: Open):
    """A name whose offset stands in no record, and a record that no entry leads to."""

    def turn(table: bytes) -> bytes:
        return table.replace(b"(*Conn).Read\0", b"(*Conn)_Read\0")

    found = inspect(opened, program(change=turn)[0])
    assert found.reason == "a Go program without crypto/tls.(*Conn).Read"


def test_hostile_tables_cost_little_and_crash_nothing(opened: Open):
    generator = random.Random(53)
    states = set()
    began = time.process_time()
    for _ in range(503):

        def change(table: bytes) -> bytes:
            damaged = bytearray(table)
            for _ in range(generator.randrange(1, 8)):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
            return bytes(damaged)

        found = inspect(opened, program(generator.choice(list(MAGIC)), change=change)[0])
        assert "cannot be inspected" not in found.reason  # no exception that nobody thought of
        states.add(found.state)
    assert states == {"attach", "refused", "skipped"}
    assert time.process_time() - began < 20


def test_a_name_that_stands_everywhere_is_given_up_on(opened: Open):
    """Every four bytes of the table say "this is the name": looked at a few times, not a million."""

    def change(table: bytes) -> bytes:
        names = int.from_bytes(table[32:40], "little")
        place = table.index(b"crypto/tls.(*Conn).Read\0") - names
        return table + place.to_bytes(4, "little") * (1 << 20)

    data, _ = program(change=change)
    began = time.process_time()
    inspect(opened, data)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("cut", range(0, 290, 7))
def test_a_truncated_table(opened: Open, cut: int):
    found = inspect(opened, program(change=lambda table: table[:cut])[0])
    assert found.state in ("refused", "skipped")
    assert "cannot be inspected" not in found.reason


def test_code_that_could_begin_at_two_places_is_refused(opened: Open):
    """Functions all alike and evenly spaced: shifted by one they fit as well."""
    data, _ = program(
        "1.20", text_start=0, before=b"\xcc" * 64, names=NAMES[:1] + NAMES[2:3] * 1, Read=REGISTERS
    )
    found = inspect(opened, data)
    assert found.reason == "a Go program: the line table fits the code at 2 places"
