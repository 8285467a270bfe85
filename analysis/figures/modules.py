"""Plots for networks without blocks: a quantity of every module or site, listed by name from top to bottom."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from analysis.figures.depth import first_and_last, measured_at, missing_rows, stream_rows
from analysis.figures.lines import line_figure, over_depth, shown_text
from analysis.groups import MOST_LINES, Curve, Group, band, for_depth
from analysis.runs import Record, column, rows_where
from analysis.style import WIDTH, Panel, Plate, Series, finish, keep, new_axes, paper, plain

MOST_NAMES = 60  # that fit one panel
_ROW = 0.135  # inches per name
_MOST_LETTERS = 34
Values = Callable[[Record], Mapping[str, float]]  # a run's values by name, in the network's order


@paper
def gradient_by_module(records: Sequence[Record]) -> Plate:
    """Draw the gradient norm of every module at the first and last measured step."""
    groups, notes = for_depth(records, most=MOST_LINES)
    panels = []
    for point in first_and_last(groups, "gradients"):
        lines = [(group, module_norms(point.steps[group.label])) for group in measured_at(groups, point)]
        words = "gradient norm of the module"
        figure = named_figure(lines, x=words, title=point.title) or numbered_figure(
            lines, x="module, in order", y=words, title=point.title
        )
        if figure is not None:
            panels.append(Panel(point.name, f"Gradient norm by module, {point.title}", figure))
    return Plate(
        name="gradient-modules",
        title="Gradient norm by module",
        caption=" ".join([
            "L2 norm of the gradient over a module's own parameters (weight and bias), after reduction over ranks and "
            "before clipping.",
            shown_text(groups),
            *notes,
        ]),
        panels=panels,
        missing=missing_rows(records, "gradients"),
    )  # fmt: skip


def is_one_stack(records: Sequence[Record]) -> bool:
    """Return whether the numbered layers of these runs are blocks of a single stack, and so have a depth.

    In two branches, the same number means different places; in a network without a residual stream, it may too.
    """
    measured = [record for record in records if not record.gradients.empty]
    if any(stream_rows(record).empty for record in measured if not record.activations.empty):
        return False
    return any(_stacks(record) for record in measured) and all(len(_stacks(record)) <= 1 for record in measured)


def module_norms(step: float) -> Values:
    """Return the gradient norm of every module at one step."""
    return lambda record: _by_module(record, step, lambda rows: np.square(column(rows, "norm")))


def module_updates(step: float) -> Values:
    """Return the norm of the update over the norm of the weights of every module at one step."""

    def values(record: Record) -> dict[str, float]:
        updates = _by_module(
            record, step, lambda rows: np.square(column(rows, "update_ratio") * column(rows, "parameter_norm"))
        )
        weights = _by_module(record, step, lambda rows: np.square(column(rows, "parameter_norm")))
        return {name: updates[name] / weight if weight > 0 else float("nan") for name, weight in weights.items()}

    return values


def named_figure(lines: Sequence[tuple[Group, Values]], *, x: str, title: str) -> Figure | None:
    """Draw values by name, one line per group; return None if nothing is finite or there are too many names.

    Names are matched across groups; their common prefix labels the axis. Runs of names with the same prefix (a branch
    of the network) are set apart by shading, and lines do not continue from one to the next.

    Args:
        lines: The groups, each with a function that returns its values.
        x: Label of the logarithmic axis.
        title: Title of the plot.
    """
    names = merged(list(values(record)) for group, values in lines for record in group.records)
    if not names or len(names) > MOST_NAMES:
        return None
    head = _common_head(names)
    labels = [name.removeprefix(head) for name in names]
    axes = new_axes(x=x, y=head.rstrip("."))
    axes.set_title(title, loc="right")  # the names leave no room on the left
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.set_size_inches(WIDTH, 0.75 + _ROW * len(names))
    for group, values in lines:
        _draw(axes, group, _curve(values, names), _parts(labels))
    if not axes.get_lines():
        return None
    for begin, end in _parts(labels)[1::2]:
        axes.axhspan(begin - 0.5, end - 0.5, color="#f0f0ee", zorder=0, linewidth=0)
    axes.set_yticks(range(len(names)), [_short(name) for name in labels], fontsize=6)
    axes.set_ylim(len(names) - 0.4, -0.6)
    finish(axes, log="x")
    _thin_ticks(axes)
    return figure


def numbered_figure(lines: Sequence[tuple[Group, Values]], *, x: str, y: str, title: str) -> Figure | None:
    """Draw values by number, for more names than `named_figure` fits; return None if nothing is finite."""
    curves = [over_depth(group, _numbered(values)) for group, values in lines]
    return line_figure(curves, x=x, y=y, title=title, log="y")


def merged(lists) -> list[str]:
    """Return the names of all lists, preserving the order of each: a new name follows its predecessor.

    Args:
        lists: An iterable of lists of names.
    """
    ordered: list[str] = []
    for names in lists:
        at = 0
        for name in names:
            if name in ordered:
                at = ordered.index(name) + 1
            else:
                ordered.insert(at, name)
                at += 1
    return ordered


def _stacks(record: Record) -> set[str]:
    """Return the prefixes of numbered parameters up to the number, such as "model.layers"."""
    numbered = rows_where(record.gradients, step=column(record.gradients, "step")[0])
    numbered = numbered.iloc[np.flatnonzero(np.isfinite(column(numbered, "layer")))]
    return {re.split(r"\.\d+(?:\.|$)", str(name))[0] for name in column(numbered, "parameter")}


def _draw(axes: Axes, group: Group, curve: Curve, parts: Sequence[tuple[int, int]]) -> None:
    values = band(group, curve)
    if not np.isfinite(values.mean).any():
        return
    look = {"color": group.look.color, "marker": group.look.marker, "linewidth": 0.8, "markersize": 3}
    label = plain(group.label)
    for begin, end in parts:
        part = (values.x >= begin) & (values.x < end)
        if not part.any():
            continue
        (line,) = axes.plot(values.mean[part], values.x[part], label=label, **look)
        label = "_"
        limits = (values.low[part], values.high[part]) if len(group.records) > 1 else (None, None)
        keep(axes, line, Series(group.label, "", values.mean[part], values.x[part], *limits))
        if len(group.records) > 1:
            axes.fill_betweenx(values.x[part], values.low[part], values.high[part], color=group.look.color, alpha=0.2,
                               linewidth=0)  # fmt: skip


def _curve(values: Values, names: Sequence[str]) -> Curve:
    place = {name: i for i, name in enumerate(names)}

    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        pairs = sorted((place[name], value) for name, value in values(record).items())
        at, heights = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(at, dtype=float), np.array(heights, dtype=float)

    return curve


def _numbered(values: Values) -> Curve:
    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        heights = list(values(record).values())
        return np.arange(len(heights)), np.array(heights, dtype=float)

    return curve


def _thin_ticks(axes: Axes) -> None:
    """Thin out the labels so that they do not overlap on an axis shortened by the names."""
    low, high = axes.get_xlim()
    if axes.get_xscale() == "log" and high / low > 10:
        subs = (1.0, 3.0) if high / low < 100 else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=5))
    axes.tick_params(axis="x", labelsize=6.5)


def _common_head(names: Sequence[str]) -> str:
    """Return the components that all names share at the start, such as "kernels."; each name keeps its last one."""
    parts = [name.split(".")[:-1] for name in names]
    common = list(itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False)))
    return "".join(f"{level[0]}." for level in common)


def _parts(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the begin and end of each run of names with the same first component."""
    heads = [name.split(".")[0] for name in names]
    begins = [i for i, head in enumerate(heads) if i == 0 or head != heads[i - 1]]
    if len(begins) > len(names) / 2:  # the names have little in common
        return [(0, len(names))]
    return list(zip(begins, [*begins[1:], len(names)], strict=True))


def _by_module(record: Record, step: float, squares: Callable) -> dict[str, float]:
    """Return the root of the sum of squares over the parameters of each module."""
    rows = rows_where(record.gradients, step=step)
    sums: dict[str, float] = {}
    for parameter, value in zip(column(rows, "parameter"), squares(rows), strict=True):
        module = str(parameter).rpartition(".")[0] or str(parameter)
        sums[module] = sums.get(module, 0.0) + float(value)
    return {module: float(np.sqrt(value)) for module, value in sums.items()}


def _short(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else f"...{name[-_MOST_LETTERS + 3 :]}"
