"""Lines with their bands: together in one panel, or as small multiples with a panel for each arm."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.groups import MAX_POINTS, MOST_LINES, MOST_PANELS, Band, Curve, Group, band, progress, thin_out
from analysis.style import (
    DEPTH,
    HEIGHT,
    LAYER,
    WIDTH,
    Plot,
    Series,
    finish,
    fitted_legend,
    keep,
    new_axes,
    plain,
    set_scales,
    shade,
)

WIDE_RANGE = 20.0  # ratio of largest to smallest value above which a linear axis hides the small ones
_BEHIND = "#c9c9c9"
_PANEL_HEIGHT, _LEFT, _BOTTOM, _TITLE = 1.3, 0.62, 0.46, 0.2  # inches
_MOST_POINTS = 500  # of a line in a small panel, which is some 450 dots wide at 300 dpi
_POINTS_BEHIND = 120
_SMALL_MARKER = 2.2  # points
_LETTERS_OF_TITLES = 112  # side by side, with a few between them; labels are a little shorter
_MOST_NAMES = 24  # that a caption lists

Decorate = Callable[[Axes, "Sequence[Line]"], None]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A quantity of one group.

    Attributes:
        group: The runs.
        band: Mean and range over the runs, at positions on the axis.
        label: Entry in the legend; empty for none.
        quantity: What the line shows, if a plot shows several.
        look: Style that differs from the group's color.
        has_band: Whether the range is drawn: over several runs (None), or always or never.
        is_reference: Whether the line stands for its arm where the arm is behind another.
    """

    group: Group
    band: Band
    label: str = ""
    quantity: str = ""
    look: Mapping[str, Any] = field(default_factory=dict)
    has_band: bool | None = None
    is_reference: bool = True

    @property
    def is_finite(self) -> bool:
        """Whether there is anything to draw."""
        return bool(np.isfinite(self.band.mean).any())

    @property
    def title(self) -> str:
        """The panel that the line belongs to."""
        return self.group.arm or self.group.label


def over_depth(group: Group, curve: Curve, *, label: str | None = None, quantity: str = "", **look: Any) -> Line:
    """Return a line over depth, with the group's marker."""
    style = {"color": group.look.color, "marker": group.look.marker, **look}
    label = group.label if label is None else label
    return Line(group=group, band=band(group, curve), label=label, quantity=quantity, look=style)


def over_training(
    group: Group, curve: Curve, *, axis: str, label: str | None = None, quantity: str = "", **look: Any
) -> Line:
    """Return a line over training, with the group's dashes.

    Args:
        group: The runs.
        curve: Function that returns the steps and values of one run.
        axis: Unit of the horizontal axis: "tokens", "samples" or "step".
        label: Entry in the legend; None for the group's label.
        quantity: What the line shows.
        look: Style of the line.
    """
    over_steps = band(group, curve)
    along = over_steps._replace(x=progress(group.records[0], over_steps.x, axis))
    style = {"color": group.look.color, "linestyle": group.look.line, **look}
    label = group.label if label is None else label
    return Line(group=group, band=along, label=label, quantity=quantity, look=style)


def line_figure(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    title: str = "",
    log: str = "",
    counts: str = "",
    decorate: Decorate | None = None,
) -> Figure | None:
    """Draw up to six groups in one panel, more in a panel for each arm; return None if nothing is finite.

    Small multiples share their axes; the lines of the other arms are behind, in light gray.

    Args:
        lines: The lines of all groups.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        title: Title of the figure.
        log: Axes that are logarithmic: "", "x", "y" or "xy".
        counts: Axes whose ticks are counts.
        decorate: Function that draws on one panel what belongs to its lines.
    """
    lines = [line for line in lines if line.is_finite]
    if not lines:
        return None
    if is_divided(lines):
        return _multiples(lines, x=x, y=y, title=title, log=log, counts=counts, decorate=decorate)
    axes = new_axes(x=x, y=y, title=title)
    for line in lines:
        draw(axes, line)
    if decorate is not None:
        decorate(axes, lines)
    return finish(axes, log=log, counts=counts)


def draw(axes: Axes, line: Line, *, most: int = MAX_POINTS, label: str | None = None) -> None:
    """Draw a line, with a band over its seeds, and keep its numbers.

    Args:
        axes: Axes to draw on.
        line: The line.
        most: The most points; extremes and gaps are kept.
        label: Entry in the legend, if it is not the line's own.
    """
    text = line.label if label is None else label
    thin = thin_out(line.band, most)
    (artist,) = axes.plot(thin.x, thin.mean, label=plain(text) if text else "_", **line.look)
    has_band = len(line.group.records) > 1 if line.has_band is None else line.has_band
    if has_band:
        shade(axes, thin.x, thin.low, thin.high, color=line.look["color"])
    limits = (line.band.low, line.band.high) if has_band else (None, None)
    keep(axes, artist, Series(line.group.label, line.quantity, line.band.x, line.band.mean, *limits))


def draw_extra(axes: Axes, of: Line, x: np.ndarray, y: np.ndarray, *, quantity: str, **look: Any) -> None:
    """Draw a curve that belongs to a line, such as its fit, without an entry in the legend, and keep its numbers."""
    (artist,) = axes.plot(x, y, label="_", gid=quantity, **{"color": of.look["color"], **look})
    keep(axes, artist, Series(of.group.label, quantity, x, y))


def is_divided(lines: Sequence[Line]) -> bool:
    """Return whether the lines have a panel for each arm: more than six groups, of more than one arm."""
    return len({line.group.label for line in lines}) > MOST_LINES and len({line.title for line in lines}) > 1


def is_wide(arrays: Sequence[np.ndarray]) -> bool:
    """Return whether values span a range that only a logarithmic axis can show."""
    values = np.concatenate([*arrays, np.empty(0)])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() / values.min() > WIDE_RANGE)


def shown_text(groups: Sequence[Group]) -> str:
    """Return the sentences of a caption on which groups a figure shows, how, and over how many seeds."""
    if not groups:
        return ""
    names = [group.label for group in groups]
    arms = list(dict.fromkeys(group.arm or group.label for group in groups))
    is_by_arm = len(groups) > MOST_LINES and len(arms) > 1
    if is_by_arm and len(arms) < len(groups):  # each at several learning rates
        names = arms
    listed = "; ".join(names[:_MOST_NAMES]) + (f"; and {len(names) - _MOST_NAMES} more" * (len(names) > _MOST_NAMES))
    sentences = [f"Shown: {listed}."]
    if is_by_arm:
        sentences.append("One panel per arm, on the same axes; light gray: the other arms.")
    if counts := sorted({len(group.records) for group in groups if len(group.records) > 1}):
        count = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        which = "Lines" if all(len(group.records) > 1 for group in groups) else "Lines of several runs"
        sentences.append(
            f"{which} are means over {count} runs that differ only in seed, with a band from the lowest to the "
            "highest; there is a gap where one of them has no finite value."
        )
    return " ".join(sentences)


def _multiples(
    lines: Sequence[Line], *, x: str, y: str, title: str, log: str, counts: str, decorate: Decorate | None
) -> Figure:
    """Draw a small panel for each arm. The layout is fixed, in inches: a constrained one takes seconds."""
    of_arm: dict[str, list[Line]] = {}
    for line in lines:
        of_arm.setdefault(line.title, []).append(line)
    names = list(of_arm)[:MOST_PANELS]
    figure, panels = panel_grid(len(names))
    for axes, name in zip(panels, names, strict=True):
        for other, others in of_arm.items():
            if other != name:
                _draw_behind(axes, others)
        own = of_arm[name]
        labels = _labels_within(own, letters=_LETTERS_OF_TITLES // max(_columns(len(names)), 4) - 4)
        for line, label in zip(own, labels, strict=True):
            draw(axes, replace(line, look={**line.look, "markersize": _SMALL_MARKER}), most=_MOST_POINTS, label=label)
        if any(labels):
            axes.legend(fontsize=5.5, loc="upper right", handlelength=1.8, labelspacing=0.2, borderpad=0.1)
        if decorate is not None:
            decorate(axes, own)
        set_scales(axes, log=log, counts=counts)
    finish_grid(figure, panels, names, x=x, y=y, title=title)
    return figure


def _labels_within(lines: Sequence[Line], *, letters: int) -> list[str]:
    """Return the labels within an arm's panel, without what its title says; none if there is one group."""
    groups = {line.group.label for line in lines}
    if len(groups) == 1 and len({line.quantity for line in lines if line.label}) <= 1:
        return [""] * len(lines)
    title = lines[0].title
    labels = [line.label.removeprefix(title).strip(" ,:") or line.quantity or line.label for line in lines]
    return [textwrap.fill(label, letters) if line.label else "" for label, line in zip(labels, lines, strict=True)]


def _draw_behind(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw an arm's first line behind another arm's panel."""
    line = next((line for line in lines if line.is_reference), lines[0])
    thin = thin_out(line.band, _POINTS_BEHIND)
    (artist,) = axes.plot(thin.x, thin.mean, color=_BEHIND, linewidth=0.6, zorder=1.2, label="_", gid="behind")
    keep(axes, artist, None)


def panel_grid(count: int) -> tuple[Plot, list[Axes]]:
    """Return a figure with small panels that share their axes."""
    columns = _columns(count)
    figure = Plot(figsize=(2 * WIDTH + 0.2, HEIGHT))
    grid = figure.subplots(math.ceil(count / columns), columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[count - columns : count]:
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _columns(count: int) -> int:
    """Return the columns of small multiples: four, or five where the last row would have a single panel."""
    return min(count, 5 if count % 4 == 1 else 4)


def finish_grid(
    figure: Figure, panels: Sequence[Axes], names: Sequence[str], *, x: str, y: str, title: str = ""
) -> None:
    """Write names, labels and legend of small multiples, and lay them out.

    Args:
        figure: The figure.
        panels: Its panels.
        names: Title of each panel.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        title: Title of the figure.
    """
    columns = _columns(len(panels))
    wrapped = [textwrap.wrap(name, _LETTERS_OF_TITLES // max(columns, 4)) or [""] for name in names]
    for axes, words in zip(panels, wrapped, strict=True):
        axes.set_title(
            "\n".join(map(plain, words)), loc="left", fontsize=7, pad=3, y=1.0
        )  # a given height is found at once
        axes.tick_params(labelsize=6.5)
    if x in (DEPTH, LAYER):
        panels[0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    elif panels[0].get_xscale() == "linear":
        panels[0].xaxis.set_major_locator(MaxNLocator(nbins=4))
    rows = math.ceil(len(panels) / columns)
    gap = _TITLE + 0.11 * (max(map(len, wrapped)) - 1)  # above each panel, for its name
    bottom = _BOTTOM + _legend_of_extras(figure, panels[0])
    top = gap + (0.26 if title else 0.04)
    height = top + rows * _PANEL_HEIGHT + (rows - 1) * (gap + 0.06) + bottom
    width = figure.get_size_inches()[0]
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left=_LEFT / width, right=1 - 0.08 / width, bottom=bottom / height, top=1 - top / height,
        wspace=0.08, hspace=(gap + 0.06) / _PANEL_HEIGHT,
    )  # fmt: skip
    if title:
        figure.text(_LEFT / width, 1 - 0.06 / height, plain(title), ha="left", va="top", fontsize=8)
    figure.text((_LEFT + width) / 2 / width, (bottom - 0.3) / height, x, ha="center", va="top", fontsize=8)
    middle = (bottom + height - top) / 2 / height
    figure.text(0.06 / width, middle, plain(y), ha="left", va="center", rotation="vertical", fontsize=8)


def _legend_of_extras(figure: Figure, axes: Axes) -> float:
    """Put the labels that every panel shares, such as those of baselines, below all; return their height in inches."""
    own = axes.get_legend()
    within = {text.get_text() for text in own.get_texts()} if own is not None else set()
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    entries = {label: handle for label, handle in entries.items() if label not in within}
    legend = fitted_legend(figure, entries, place="lower center")
    return 0.0 if legend is None else legend.get_window_extent().height / figure.dpi
