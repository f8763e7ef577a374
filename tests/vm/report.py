"""The table of the documentation: what was found on each kernel, as the tests in the machines said it.

Takes figures (kernel release, subject, text); returns Markdown. Adds nothing of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

HEAD = """\
# Kernels

Written by the tests that install the package in virtual machines (`make test-vm`, `tests/vm/`; this file by
`python -m tests.vm --write-docs`): Debian 12 with the kernel in each column, under QEMU's software emulation with one
processor. Emulation makes everything about twenty times slower: times are for comparing, not for planning.

"""

PATHS = ("doctor: ", "in use: ", "socket named by")
"""Subjects about the way taken; they make the first table."""


def table(figures: Iterable[Mapping[str, str]]) -> str:
    """Two tables, ways taken and results, a column for each kernel in the order of their appearance."""
    columns: list[str] = []
    cells: dict[str, dict[str, list[str]]] = {}
    for one in figures:
        if one["kernel"] not in columns:
            columns.append(one["kernel"])
        cells.setdefault(one["subject"], {}).setdefault(one["kernel"], []).append(one["text"])
    ways = {subject: row for subject, row in cells.items() if subject.startswith(PATHS)}
    results = {subject: row for subject, row in cells.items() if subject not in ways}
    return (
        HEAD
        + "## Which way each feature takes\n\n"
        + _table(ways, columns)
        + "\n## Results\n\n"
        + _table(results, columns)
    )


def _table(rows: Mapping[str, Mapping[str, list[str]]], columns: list[str]) -> str:
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for subject, row in rows.items():
        found = ("<br>".join(row.get(column, ["–"])).replace("|", "\\|") for column in columns)
        lines.append(f"| {subject} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"
