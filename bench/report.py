"""Figures, how they are shown, and how they are kept.

Takes ``Figure`` values from the parts; gives a table for people and JSON for programs. A target is shown
beside its figure and judged in words only: a bench measures, it never fails for being slow.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

NAME_WIDTH = 78


@dataclass
class Figure:
    """One number with its unit. ``target`` is text ("< 15"), ``samples`` are the rounds behind the median."""

    part: str
    name: str
    value: float
    unit: str
    target: str = ""
    note: str = ""
    samples: list[float] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """met or missed, where there is a target."""
        if not self.target:
            return ""
        sign, limit = self.target.split()
        met = {
            "<": self.value < float(limit),
            "<=": self.value <= float(limit),
            ">=": self.value >= float(limit),
        }[sign]
        return "met" if met else "missed"


def median(part: str, name: str, samples: Iterable[float], unit: str, **options: str) -> Figure:
    """The median of the rounds; the rounds themselves go into the JSON."""
    values = list(samples)
    return Figure(part, name, statistics.median(values), unit, samples=values, **options)


def number(value: float) -> str:
    """A number with about four significant digits."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


def table(figures: list[Figure]) -> str:
    """Figures by part, with target and verdict."""
    lines: list[str] = []
    part = ""
    for figure in figures:
        if figure.part != part:
            part = figure.part
            lines += ["", part]
        target = f"  target {figure.target} {figure.verdict}" if figure.target else ""
        lines.append(f"  {figure.name:<{NAME_WIDTH}}{number(figure.value):>12} {figure.unit}{target}")
        if len(figure.samples) > 1:
            lines.append(f"      rounds: {', '.join(number(value) for value in figure.samples)}")
        if figure.note:
            lines.append(f"      {figure.note}")
    return "\n".join(lines)


def host() -> dict[str, str | int | float]:
    """What it was measured on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return {
        "cpus": os.cpu_count() or 0,
        "cpu": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def save(path: Path, about: dict[str, str | int | float], figures: list[Figure]) -> None:
    """Writes everything as JSON."""
    path.parent.mkdir(exist_ok=True)
    rows = [{**asdict(figure), "verdict": figure.verdict} for figure in figures]
    path.write_text(json.dumps({"host": about, "figures": rows}, indent=1) + "\n")
