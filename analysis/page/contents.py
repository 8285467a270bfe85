"""Contents of a page: sections with notes, tables and plots, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from analysis.style import Plate


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        title: Heading.
        header: Names of the columns.
        rows: Cells: text, a number, a Spread, a FileLink, or None for a dash.
        caption: Text above the table.
        best: (row, column) of bold cells.
        same: What is the same in all rows, by name; listed above the table.
        is_upright: Whether a column mixes all kinds of cells, so that none is aligned as numbers.
        is_folded: Whether the table is closed until the reader opens it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    best: Collection[tuple[int, int]] = ()
    same: Mapping[str, str] = field(default_factory=dict)
    is_upright: bool = False
    is_folded: bool = False


class Spread(NamedTuple):
    """A metric over several runs: its mean and range."""

    mean: float
    low: float
    high: float


class FileLink(NamedTuple):
    """A file that a cell links, by its path relative to the page."""

    text: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page: notes first, then tables, then plots."""

    title: str
    prose: Sequence[str] = ()
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plates: Sequence[Plate] = ()


def number_text(value: Any) -> str:
    """Return a cell as people read it: four digits of a fraction, counts in full, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, Spread):
        return f"{number_text(value.mean)} ({number_text(value.low)} to {number_text(value.high)})"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and 1e3 <= abs(value) < 1e15):
        return f"{int(value):,}"
    if math.isinf(value):
        return "infinite"
    if 0.1 <= abs(value) < 1e4:
        return f"{value:#.4g}".rstrip(".")  # with its last zeros: 3.400 below 3.403
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
