"""docs/kernels.md: what was found on each kernel, as the tests said it; and whether the page still says the same.

Takes figures (kernel release, subject, text); returns Markdown. Adds nothing of its own. Ways are facts of a kernel
series and are compared to the letter; results have times in them, and are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

Figure = Mapping[str, str]
"""kernel: uname -r; subject; text."""

HEAD = """\
# Kernels

Written by the tests (`sudo .venv/bin/python -m tests.vm --write-docs`), which fail where the first table is no longer
true: Debian 12 with the kernel in each column in a virtual machine, under QEMU's software emulation with one processor,
and, for the ways, the machine that the tests ran on. Emulation makes everything about twenty times slower: times are
for comparing, not for planning.

"""

WAYS = ("doctor: ", "in use: ")
"""Subjects about the way taken; they make the first table."""


def read(file: Path) -> list[Figure]:
    """Figures as the tests wrote them, a JSON object a line; none when there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def series(release: str) -> str:
    """6.12 of 6.12.117+deb12-amd64."""
    found = re.match(r"\d+\.\d+", release)
    return found[0] if found else release


def is_way(subject: str) -> bool:
    """Whether a subject belongs to the first table."""
    return subject.startswith(WAYS)


def page(figures: Iterable[Figure]) -> str:
    """Two tables, ways taken and results, a column for each kernel, oldest first."""
    found = list(figures)
    ways = cells(one for one in found if is_way(one["subject"]))
    results = cells(one for one in found if not is_way(one["subject"]))
    return (
        HEAD
        + "## Which way each feature takes\n\n"
        + _table(ways)
        + "\n## Results in the virtual machines\n\n"
        + _table(results)
    )


def cells(figures: Iterable[Figure]) -> dict[str, dict[str, str]]:
    """By subject and series. Said twice is said once; different things are all said."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in figures:
        said = found.setdefault(one["subject"], {}).setdefault(series(one["kernel"]), [])
        text = one["text"].replace("|", "\\|")
        if text not in said:
            said.append(text)
    return {
        subject: {name: "<br>".join(said) for name, said in row.items()} for subject, row in found.items()
    }


def differences(text: str, figures: Iterable[Figure]) -> list[str]:
    """What the page ``text`` says otherwise than these figures; kernels that either lacks are passed over."""
    told = _parse(text)
    found = cells(figures)
    columns = {name for row in told.values() for name in row}
    lines = []
    for subject, row in found.items():
        for name in sorted(columns & row.keys()):
            page_says = told.get(subject, {}).get(name, "")
            if is_way(subject) and page_says != row[name]:
                lines.append(f"{name}, {subject}: the page has {page_says!r}, found was {row[name]!r}")
    return lines


def _table(rows: Mapping[str, Mapping[str, str]]) -> str:
    names = {name for row in rows.values() for name in row}
    columns = sorted(names, key=lambda name: [int(part) for part in name.split(".")])
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for subject, row in rows.items():
        lines.append(f"| {subject} | {' | '.join(row.get(column, '–') for column in columns)} |")
    return "\n".join(lines) + "\n"


def _parse(text: str) -> dict[str, dict[str, str]]:
    """Both tables of a page, as ``cells`` gives them."""
    found: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        subject, *row = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not subject:
            columns = row
        elif subject != "---":
            found[subject] = {
                name: cell for name, cell in zip(columns, row, strict=True) if cell not in ("–", "")
            }
    return found
