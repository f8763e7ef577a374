"""Imports our packages from their sources, although compiled modules lie beside them.

For SPLIFF_PURE=1 (unit tests of the same code as plain Python) and for fuzzing, which counts branches of
byte code. Holds for the calling process only.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "spliffd"


def wanted() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get("SPLIFF_PURE") == "1"


def sources_only() -> None:
    """From here on, folders of ``spliffd`` offer sources only."""
    finder = FileFinder.path_hook((SourceFileLoader, SOURCE_SUFFIXES))

    def ours(path: str) -> object:
        if not Path(path).resolve().is_relative_to(PACKAGE):
            raise ImportError(path)
        return finder(path)

    sys.path_hooks.insert(0, ours)  # type: ignore[arg-type]  # a finder, as path_hook's own result
    sys.path_importer_cache.clear()
