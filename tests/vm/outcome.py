"""What came of all sessions: one JUnit file, one line of totals, the page about kernels, and whether runs agree.

Takes the folder of results, KERNEL/run-N/DISK/ with junit-*.xml and figures.jsonl of each; returns the exit status.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.lab import REPOSITORY
from tests.vm import report

PAGE = REPOSITORY / "docs/kernels.md"


def conclude(
    results: Path,
    wrong: list[str],
    here: list[report.Figure],
    say: Callable[[str, str], None],
    *,
    write: bool,
) -> int:
    """Writes junit.xml and kernels.md; 0 when nothing failed, nothing contradicts and ``wrong`` was empty already."""
    outcomes = {path: _cases(path) for path in sorted(results.glob("**/junit-*.xml"))}
    totals = Counter(outcome for cases in outcomes.values() for outcome in cases.values())
    _merge(list(outcomes), results / "junit.xml")
    figures = list(here)
    for folder in sorted(results.glob("*/run-1")):
        said = _figures(folder)
        figures += said
        for again in sorted(set(folder.parent.glob("run-*")) - {folder}):
            wrong += _disagreements(folder, again, outcomes)
            wrong += [
                f"{again.name}: {line}" for line in report.differences(report.page(said), _figures(again))
            ]
    text = report.page(figures)
    (results / "kernels.md").write_text(text)
    if write:
        PAGE.write_text(text)
    page = PAGE.read_text() if PAGE.exists() else ""
    wrong += [f"docs/kernels.md: {line}" for line in report.differences(page, figures)]
    for line in wrong:
        say("vm", line)
    say("vm", f"JUnit and figures in {results.relative_to(REPOSITORY)}")
    print(f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped", flush=True)
    return int(bool(totals["failed"] or wrong))


def _cases(file: Path) -> dict[str, str]:
    """Outcome by test."""
    found = {}
    for case in ET.parse(file).getroot().iter("testcase"):
        bad = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcome = "passed" if not bad else "skipped" if bad == {"skipped"} else "failed"
        found[f"{case.get('classname')}.{case.get('name')}"] = outcome
    return found


def _figures(run: Path) -> list[report.Figure]:
    return [one for file in sorted(run.glob("*/figures.jsonl")) for one in report.read(file)]


def _disagreements(first: Path, again: Path, outcomes: Mapping[Path, dict[str, str]]) -> list[str]:
    def of(run: Path) -> dict[str, str]:
        return {
            test: told
            for path, cases in outcomes.items()
            if path.parent == run
            for test, told in cases.items()
        }

    one, other = of(first), of(again)
    return [
        f"{test}: {one.get(test, 'not run')} in {first.name}, {other.get(test, 'not run')} in {again.name}"
        for test in sorted(one.keys() | other.keys())
        if one.get(test) != other.get(test)
    ]  # fmt: skip


def _merge(files: list[Path], target: Path) -> None:
    whole = ET.Element("testsuites")
    for file in files:
        whole.extend(ET.parse(file).getroot().iter("testsuite"))
    ET.ElementTree(whole).write(target, encoding="utf-8", xml_declaration=True)
