"""``make docs``: reference pages made from what they describe, so that they cannot drift.

docs/configuration.md from the structs of spliffd/config.py and the text under each field, docs/metrics.md
from the metric families, docs/api.md from proto/spliff.proto. Argument: the folder to write to (docs).
``make check`` makes them anew elsewhere and compares.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from spliffd import config, counters, metrics

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made by `make docs`; do not edit. -->\n"


def configuration() -> str:
    """Every key with its default and meaning."""
    tree = ast.parse((ROOT / "spliffd/config.py").read_text())
    tables = {
        "Config": "",
        "Scope": "scope",
        "Capture": "capture",
        "Interfaces": "interfaces",
        "Access": "access",
        "History": "history",
        "Tls": "tls",
        "Metrics": "metrics",
    }
    lines = [NOTE, "# Configuration", ""]
    lines += [f"`{config.DEFAULT_PATH}`, TOML; every key is optional, an unknown key is an error.", ""]
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name not in tables:
            continue
        table = tables[node.name]
        rows = []
        for field, following in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or field.value is None:
                continue
            kind = ast.unparse(field.annotation)
            if kind in tables:
                continue
            told = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                told = " ".join(str(following.value.value).split())
            default = ast.unparse(field.value).replace("str(DEFAULT_SOCKET)", f"'{config.DEFAULT_SOCKET}'")
            rows.append(f"| `{ast.unparse(field.target)}` | {kind} | `{default}` | {told} |")
        title = f"## [{table}]" if table else "## Top level"
        lines += [
            title,
            "",
            ast.get_docstring(node) or "",
            "",
            "| key | type | default | |",
            "| - | - | - | - |",
        ]
        lines += [*rows, ""]
    return "\n".join(lines)


def metric_pages() -> str:
    """Every series with its labels and what it counts."""
    area = counters.Area.create()
    kernel = counters.kernel_region(memoryview(bytearray(len(counters.KERNEL) * 8)).cast("Q"))
    lines = [NOTE, "# Metrics", "", "| series | type | labels | |", "| - | - | - | - |"]
    for family in metrics.collect(area, kernel, 1):
        labels = sorted({key for sample in family.samples for key, _ in sample.labels} - {"le"})
        lines.append(f"| `{family.name}` | {family.kind} | {', '.join(labels)} | {family.help} |")
    return "\n".join(lines) + "\n"


def api() -> str:
    """Services and messages, one line a field, from the comments above them."""
    lines = [NOTE, "# API", "", "Package `spliff.v1`; see `proto/spliff.proto` for the conventions.", ""]
    told: list[str] = []
    for raw in (ROOT / "proto/spliff.proto").read_text().splitlines():
        line = raw.strip()
        if line.startswith("//"):
            told.append(line.removeprefix("//").strip())
            continue
        text = " ".join(told)
        told = []
        if found := re.match(r"(service|message) (\w+) \{", line):
            lines += [f"## {found[2]}", "", text, ""]
            if not line.endswith("}"):
                lines += ["| | | |", "| - | - | - |"]
        elif found := re.match(r"rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\)", line):
            lines.append(f"| `{found[1]}` | {found[2]} → {found[3] or ''}{found[4]} | {text} |")
        elif found := re.match(r"(?:(optional|repeated) )?([\w.<>, ]+) (\w+) = (\d+);", line):
            kind = f"{found[1]} {found[2]}" if found[1] else found[2]
            lines.append(f"| `{found[3]}` | {kind} | {text} |")
        elif line == "}":
            lines.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def main() -> None:
    """Writes the pages."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    pages = {"configuration.md": configuration(), "metrics.md": metric_pages(), "api.md": api()}
    for name, text in pages.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
