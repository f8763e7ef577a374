"""Metric families and how they are written: Prometheus text, or a flat dictionary.

Takes numbers with names and labels; returns lines of the text exposition (format 0.0.4). Knows nothing of
what the numbers mean: ``metrics`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Sample(NamedTuple):
    """One line of a family: name suffix, labels in order, value."""

    suffix: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(NamedTuple):
    """One metric: name, Prometheus type, help in one line, and its samples."""

    name: str
    kind: str
    help: str
    samples: list[Sample]


def exposition(families: Iterable[Family]) -> bytes:
    """The Prometheus text format, one page."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [f"{key} {_number(value)}" for key, value in _pairs(family)]
    return ("\n".join(lines) + "\n").encode()


def values(families: Iterable[Family]) -> dict[str, float]:
    """Every number by the name of its series, labels in braces, as ``GetStats`` returns them."""
    return {key: float(value) for family in families for key, value in _pairs(family)}


def _pairs(family: Family) -> Iterable[tuple[str, float]]:
    for suffix, labels, value in family.samples:
        # Label values are names of this source tree: nothing in them needs escaping.
        braces = "{" + ",".join(f'{name}="{text}"' for name, text in labels) + "}" if labels else ""
        yield f"{family.name}{suffix}{braces}", value


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def counter(name: str, text: str, value: float) -> Family:
    """A counter without labels."""
    return Family(name, "counter", text, [Sample("", (), value)])


def gauge(name: str, text: str, value: float) -> Family:
    """A gauge without labels."""
    return Family(name, "gauge", text, [Sample("", (), value)])


def labelled(kind: str, name: str, text: str, label: str, pairs: Sequence[tuple[str, float]]) -> Family:
    """A family of ``kind`` with one label, a sample for each of its (value, number)."""
    return Family(name, kind, text, [Sample("", ((label, key),), value) for key, value in pairs])
