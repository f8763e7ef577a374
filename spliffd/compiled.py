"""Whether the hot modules run as machine code, and whether that is of these sources.

``packaging/hot.py`` compiles them with mypyc and leaves a stamp: the digest of each source. The import
system prefers a compiled module over its source whatever their ages, so an old one would hide an edit:
tests refuse to run on it, and the daemon says so.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

COMPILED, PLAIN, STALE = "compiled", "plain Python", "stale"
STAMP = "spliffd/compiled.json"

_ROOT = Path(__file__).resolve().parents[1]


def digests(names: list[str]) -> dict[str, str]:
    """SHA-256 of each source, by path below the folder that holds the package."""
    return {name: hashlib.sha256((_ROOT / name).read_bytes()).hexdigest() for name in names}


def write(names: list[str]) -> None:
    """Leaves the stamp."""
    (_ROOT / STAMP).write_text(json.dumps(digests(names), indent=1) + "\n", encoding="utf-8")


def state(names: list[str] | None = None) -> str:
    """COMPILED, PLAIN, or STALE when a source (or the list of ``names``) changed since."""
    try:
        known: dict[str, str] = json.loads((_ROOT / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return PLAIN
    try:
        current = digests(list(known) if names is None else names)
    except OSError:
        return STALE
    return COMPILED if current == known else STALE
