"""Tables as aligned text: a heading, then rows; the last column runs free.

Takes rows of strings, quotes each cell, returns lines. Columns are as wide as their widest cell; the last is
not padded, so that a long reason neither wraps a terminal with spaces nor is cut. Never truncates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spliffctl.render.colour import Palette
from spliffctl.render.quote import quote


def table(heading: Sequence[str], rows: Iterable[Sequence[str]], palette: Palette) -> list[str]:
    """Lines of a table; every row has as many cells as the heading. Empty cells are shown as ``-``."""
    cells = [[quote(cell) or "-" for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(heading), *cells]) for i in range(len(heading))]
    result = [palette.faint + _line(heading, widths) + palette.reset]
    result.extend(_line(row, widths) for row in cells)
    return result


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
    return "  ".join([*padded, row[-1]])
