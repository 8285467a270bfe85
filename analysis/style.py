"""Plot style: one palette, one size, one legend; each plot is a single panel as wide as a column in a paper."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from modeling.decoder.facts_placements_periln import CHOICES

DEPTH, LAYER = "depth (blocks)", "layer"  # axes that count blocks

PAPER: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "periln",  # the same figure gives the same file
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
WIDTH, HEIGHT = 3.5, 2.45  # inches, without the legend
_TITLE_LETTERS = 56
_MOST_COLUMNS = 3  # of a legend

# A placement has the same color, marker and line everywhere: these, in the order of CHOICES. The first four colors
# are Okabe-Ito's, the others Tol's or darker. No two share a color, nor both marker and line.
_DOTS: tuple[int, tuple[int, ...]] = (0, (3, 1, 1, 1, 1, 1))
PALETTE: tuple[tuple[str, str, str | tuple[int, tuple[int, ...]]], ...] = (
    ("#D55E00", "s", "--"),
    ("#0072B2", "v", "-."),
    ("#009E73", "o", "-"),
    ("#CC79A7", "D", _DOTS),
    ("#4E2A84", "^", "-"),
    ("#B8860B", "<", "--"),
    ("#44AA99", ">", "-."),
    ("#AA4499", "p", "-"),
    ("#117733", "h", "--"),
    ("#CC6677", "*", "-."),
    ("#3B6FB6", "d", "-"),
    ("#6B4226", "H", "--"),
    ("#8A8A00", "8", "-."),
    ("#B2182B", "o", ":"),
    ("#2AA6C4", "s", ":"),
    ("#7B9F35", "^", ":"),
    ("#9970AB", "v", "-"),
    ("#E0803C", "D", "-"),
    ("#1B4B5A", "p", ":"),
    ("#D6498F", "d", "--"),
)
_LOOKS = dict(zip(CHOICES, PALETTE, strict=False)) | {
    "mixed": ("#E69F00", "P", (0, (6, 2))),
    "unknown": ("#555555", "X", "-"),
}
# Runs without a placement have colors that no placement uses.
_OTHERS = (
    ("#555555", "X", "-"),
    ("#56B4E9", "o", "--"),
    ("#882255", "s", "-."),
    ("#999933", "^", _DOTS),
    ("#332288", "D", (0, (6, 2))),
    ("#DDAA77", "v", "-"),
)
NAMES = {name: placement.title for name, placement in CHOICES.items()} | {
    "mixed": "mixed placements",
    "unknown": "unknown placement",
}
paper = matplotlib.rc_context(PAPER)  # as a decorator: what a function draws has this style


class Series(NamedTuple):
    """The numbers of one line, at full precision and in full number; (N,) each, NaN where there is no value."""

    label: str
    quantity: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


class Plot(Figure):
    """A figure that keeps the numbers it shows, for the file beside it."""

    def __init__(self, **options: Any) -> None:
        """Create an empty figure; the options are Figure's."""
        super().__init__(**options)
        self.kept: dict[Line2D, Series | None] = {}
        self.cells: list[Series] = []  # numbers shown as such, not as lines


class Look(NamedTuple):
    """How one line is drawn."""

    color: str | tuple[float, float, float]
    marker: str
    line: str | tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Panel:
    """One figure file; `name` is the end of its file's name, `alt` says in words what it shows."""

    name: str
    alt: str
    figure: Figure


@dataclass(frozen=True, kw_only=True)
class Plate:
    """Panels that belong together, with their caption and findings.

    Attributes:
        name: Prefix of the file names.
        title: Heading.
        caption: Explanation of the plots and of how the data were measured.
        panels: The plots; empty if nothing was measured.
        findings: Sentences computed from the data.
        missing: Reasons for everything that is not drawn.
        is_open: Whether all findings are shown at once, however many there are.
        is_row: Whether the panels are small ones that belong beside each other.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel] = ()
    findings: Sequence[str] = ()
    missing: Sequence[str] = ()
    is_open: bool = False
    is_row: bool = False


def look(placement: str, *, variant: int = 0, variants: int = 1) -> Look:
    """Return the look of a placement: variants are shades of its color; without a placement, they differ in color."""
    color, marker, line = _LOOKS.get(placement, _LOOKS["unknown"])
    if color == _LOOKS["unknown"][0] and variants > 1:
        row, at = divmod(variant, len(_OTHERS))
        return Look(_OTHERS[at][0], *_OTHERS[(at + row) % len(_OTHERS)][1:])
    if variants == 1:
        return Look(color, marker, line)
    return Look(shades(color, variants)[variant], marker, line)


def shades(color: str | tuple[float, float, float], count: int) -> list[tuple[float, float, float]]:
    """Return shades of a color from light to dark, the last for what matters most."""
    if count == 1:
        return [to_rgb(color)]
    light, dark = (0.6, -0.5) if count > 2 else (0.3, -0.3)  # share of white; of black where it is negative
    base = np.array(to_rgb(color))
    return [
        to_rgb(tuple(base + share * (1 - base) if share > 0 else base * (1 + share)))
        for share in np.linspace(light, dark, count)
    ]


def new_axes(*, x: str, y: str, title: str = "") -> Axes:
    """Return empty axes of a figure of their own."""
    axes = Plot(figsize=(WIDTH, HEIGHT), layout="constrained").add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(plain(y))
    if x in (DEPTH, LAYER):
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if title:
        axes.set_title(textwrap.fill(plain(title), _TITLE_LETTERS), loc="left")
    return axes


def plain(text: str) -> str:
    """Return a text that matplotlib draws as it is: dollars are no mathematics, an underscore hides no label."""
    shown = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def keep(axes: Axes, line: Line2D, series: Series | None) -> None:
    """Keep the numbers of a line for the file beside the figure; None: it repeats what another panel shows."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Plot)
    figure.kept[line] = series


def series_of(figure: Figure) -> list[Series]:
    """Return the numbers of a figure: of all lines, as kept or else as drawn, and of cells; empty for a picture."""
    if not isinstance(figure, Plot):
        return []
    kept, series = figure.kept, list(figure.cells)
    for axes in figure.axes:
        for line in axes.get_lines():
            of_line = kept[line] if line in kept else _as_drawn(axes, line)
            is_new = line in kept or not any(_are_equal(of_line, other) for other in series)
            series += [of_line] if of_line is not None and len(of_line.x) and is_new else []
    return series


def _are_equal(one: Series | None, other: Series) -> bool:
    """Return whether two series are the same, as a baseline's is in each of small panels."""
    return (
        one is not None
        and one[:2] == other[:2]
        and all(np.array_equal(*arrays, equal_nan=True) for arrays in ((one.x, other.x), (one.y, other.y)))
    )


def _as_drawn(axes: Axes, line: Line2D) -> Series:
    """Return a line's numbers; a coordinate given as a share of the panel, such as a baseline's, is NaN."""
    x, y = (np.atleast_1d(np.asarray(values, dtype=float)) for values in line.get_data())
    across, up = axes.get_yaxis_transform(), axes.get_xaxis_transform()
    x = np.full(len(x), np.nan) if line.get_transform() == across else x
    y = np.full(len(y), np.nan) if line.get_transform() == up else y
    label = str(line.get_label())
    return Series("" if label.startswith("_") else label.strip(), str(line.get_gid() or ""), x, y)


def shade(
    axes: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, *, color: str | tuple[float, float, float]
) -> None:
    """Draw a band, with a gap at zeros: on a logarithmic axis, its outline would run off to minus infinity."""
    axes.fill_between(x, low, high, where=low != 0, color=color, alpha=0.2, linewidth=0)  # type: ignore[arg-type]


def finish(axes: Axes, *, log: str = "", counts: str = "", legend: bool = True) -> Figure:
    """Set scales and ticks, put the legend below, and return the figure.

    Args:
        axes: With everything drawn.
        log: Axes that are logarithmic: "", "x", "y" or "xy"; an axis without a positive value stays linear.
        counts: Axes whose ticks are counts, like 30M.
        legend: Whether there is one; lines without a label, or without a visible point, are not in it.
    """
    set_scales(axes, log=log, counts=counts)
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    for line in axes.get_lines():
        if not _is_visible(axes, line):
            line.set_label("_")
    if legend:
        _legend_below(figure, axes)
    return figure


def set_scales(axes: Axes, *, log: str = "", counts: str = "") -> None:
    """Set the scales and ticks of one panel; the arguments are those of `finish`."""
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name in log and _has_positive(axes, name):
            axes.set_xscale("log", nonpositive="mask") if name == "x" else axes.set_yscale("log", nonpositive="mask")
            limits = _wide_enough(*(axes.get_xlim() if name == "x" else axes.get_ylim()))
            axes.set_xlim(limits) if name == "x" else axes.set_ylim(limits)
            _log_ticks(axis, *limits)
        if name in counts:
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: count_text(value)))


def count_text(value: float) -> str:
    """Return a count with at most three digits and a letter: 409.6k, 30B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _is_visible(axes: Axes, line: Line2D) -> bool:
    """Return whether a line has a point on its axes; one without any points is an entry of the legend only."""
    x, y = (np.atleast_1d(np.asarray(values, dtype=float)) for values in line.get_data())
    x_is_log, y_is_log = axes.get_xscale() == "log", axes.get_yscale() == "log"
    is_inside = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not x_is_log)) & ((y > 0) | (not y_is_log))
    return not len(x) or bool(is_inside.any()) or line.get_transform() != axes.transData


def _has_positive(axes: Axes, name: str) -> bool:
    drawn = [line.get_xdata() if name == "x" else line.get_ydata() for line in axes.get_lines()]
    return any(bool((np.asarray(values, dtype=float) > 0).any()) for values in drawn)


def _wide_enough(low: float, high: float) -> tuple[float, float]:
    """Widen a logarithmic axis to a factor of 4: what barely varies looks it, and some ticks have labels."""
    if low <= 0 or high / low >= 4:
        return low, high
    center = math.sqrt(low * high)
    return center / 2, center * 2


def _log_ticks(axis, low: float, high: float) -> None:
    """Label 1, 2, 5 within a few decades and powers of ten beyond; plain numbers where they are short."""
    decades = math.log10(high / low) if low > 0 else 9.0
    subs = (1.0, 2.0, 5.0) if decades <= 2.5 else (1.0,)
    if decades <= 0.7:
        subs = tuple(float(digit) for digit in range(1, 10))
    axis.set_major_locator(ticker.LogLocator(base=10, subs=subs, numticks=8))
    axis.set_minor_locator(ticker.NullLocator())  # dozens of unlabeled ticks take half of the time of drawing
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _log_text(value)))


def _log_text(value: float) -> str:
    if value <= 0:
        return ""
    exponent = math.floor(math.log10(value) + 1e-9)
    if -4 < exponent < 4:
        return f"{value:g}"
    digit = round(value / 10**exponent)
    return f"$10^{{{exponent}}}$" if digit == 1 else f"${digit}{{\\cdot}}10^{{{exponent}}}$"


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend below the panel, and make the figure taller by its height."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if (legend := fitted_legend(figure, entries, place="outside lower center")) is not None:
        height = legend.get_window_extent().height / figure.dpi
        figure.set_size_inches(WIDTH, figure.get_size_inches()[1] + height + 0.02)


def fitted_legend(figure: Figure, entries: Mapping[str, Any], *, place: str) -> Legend | None:
    """Add a legend: in as many columns as fit, with labels wrapped where one alone is too wide.

    Args:
        figure: The figure.
        entries: The artists by label.
        place: Where it is, as matplotlib names it.

    Returns:
        The legend, not wider than the figure; None without entries.
    """
    if not entries:
        return None
    tries = [(columns, 0) for columns in range(min(_MOST_COLUMNS, len(entries)), 0, -1)]
    for columns, letters in [*tries, *((1, letters) for letters in range(60, 0, -6))]:
        labels = [textwrap.fill(label, letters) if letters else label for label in entries]
        look = {"loc": place, "ncols": columns, "columnspacing": 1.2, "handlelength": 2.2}
        legend = figure.legend(list(entries.values()), labels, **look)
        if legend.get_window_extent().width <= figure.bbox.width:
            return legend
        legend.remove()
    raise AssertionError("a legend of six letters is wider than its figure")
