"""Heat map: a number, or a word, for every pair of a row and a column."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.style import WIDTH, Plot, Series, paper

_ROW, _EDGE = 0.27, 0.75  # inches of a row; of axis label and color bar
_MOST_NARROW = 4  # columns of a figure as wide as a column in a paper
_MOST_LETTERS = 26  # of a row's name in one line
_SATURATES = 3.0  # distances of the median from the least value


@paper
def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], float | str],
    *,
    positions: Sequence[float],
    x: str,
    color: str,
    framed: Collection[tuple[int, int]] = (),
    saturates: float = _SATURATES,
) -> Figure:
    """Draw a cell per row and column, low values dark.

    The colors saturate at some times the median's distance from the least value, so that one large value does not
    make all others look alike.

    Args:
        rows: Names of the rows, from top to bottom.
        columns: Names of the columns, from left to right.
        cells: A number, shown as such, or words for it, by row and column; others stay empty.
        positions: What the columns stand for, as numbers.
        x: Label of the columns.
        color: Label of the color bar.
        framed: Cells with a frame and bold text.
        saturates: These times; infinite: the colors end at the largest value.
    """
    wrapped = [textwrap.fill(name, _MOST_LETTERS) for name in rows]
    lines = sum(max(1.0, 0.62 * (name.count("\n") + 1)) for name in wrapped)
    width = WIDTH if len(columns) <= _MOST_NARROW else 2 * WIDTH
    figure = Plot(figsize=(width, _EDGE + _ROW * lines), layout="constrained")
    axes = figure.add_subplot()
    values = np.full((len(rows), len(columns)), np.nan)
    for at, cell in cells.items():
        if not isinstance(cell, str):
            values[at] = cell
    numbers = np.asarray(positions, dtype=float)
    figure.cells = [Series(name, color, numbers, of_row) for name, of_row in zip(rows, values, strict=True)]
    low, high = limits(values, saturates=saturates)
    shown = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(shown, cmap="viridis", vmin=low, vmax=high, edgecolors="white", linewidth=0.8)
    for (row, column), cell in cells.items():
        _annotate(axes, row, column, cell, low, high, is_bold=(row, column) in framed)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, wrapped)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xlabel(x)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if np.isfinite(values).any() and high > low:
        beyond = bool(np.nanmax(values) > high)
        bar = figure.colorbar(mesh, ax=axes, extend="max" if beyond else "neither", pad=0.02, aspect=14)
        bar.set_label(color, fontsize=7)
        bar.outline.set_visible(False)  # type: ignore[union-attr]
    return figure


def _annotate(axes, row: int, column: int, cell: float | str, low: float, high: float, *, is_bold: bool) -> None:
    is_word = isinstance(cell, str)
    if is_word:
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor="#e9e9e9", edgecolor="white", linewidth=0.8))
        text, ink = textwrap.fill(cell, 10), "#1b1b1b"
    else:
        text, ink = f"{cell:.3f}" if 0.1 <= abs(cell) < 100 else f"{cell:.3g}", _ink(cell, low, high)
    weight = "bold" if is_bold else "normal"
    size = 5.5 if is_word else 7
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=size, fontweight=weight,
              linespacing=0.95)  # fmt: skip
    if is_bold:
        inset = (column + 0.03, row + 0.07)
        axes.add_patch(Rectangle(inset, 0.94, 0.86, fill=False, edgecolor="#D55E00", linewidth=1.2, zorder=3))


def _ink(value: float, low: float, high: float) -> str:
    """Return black or white, whichever is legible on the cell's color."""
    share = min(1.0, (value - low) / (high - low)) if high > low else 0.0
    red, green, blue, _ = matplotlib.colormaps["viridis"](share)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "#1b1b1b"


def limits(values: np.ndarray, *, saturates: float) -> tuple[float, float]:
    """Return the least value, and the largest or, if that is less, `saturates` times the median above the least."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    saturated = low + saturates * (float(np.median(finite)) - low)
    return low, min(high, saturated) if saturated > low else high
