"""Plot of the loss: the raw training loss in pale, a running mean on top, and the validation loss as markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.figures.lines import Line, is_wide, line_figure, over_training, shown_text
from analysis.figures.training import (
    BASELINES,
    axis_label,
    draw_baselines,
    training_curve,
    validation_curve,
    without_rows,
)
from analysis.groups import Curve, Group, axis_of, with_arms
from analysis.metrics import ValidationMetric
from analysis.runs import Record
from analysis.style import Panel, Plate, paper
from analysis.validation import baselines, comparisons

FEWEST_POINTS = 20  # logged steps below which nothing is smoothed
_SHARE = 0.04  # of the logged steps, in one window
_SMALLEST_WINDOW = 5
_PALE = 0.45


def window_of(count: int) -> int:
    """Return the logged steps in a window of the running mean: odd, 4 % of all but at least 5; 1 for few steps."""
    if count < FEWEST_POINTS:
        return 1
    return max(_SMALLEST_WINDOW, 2 * round(_SHARE * count / 2) + 1)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the centered running mean of (N,) values.

    Windows shrink on both sides near the ends, so a straight line is kept exactly and nothing lags. What is not
    finite stays a gap and is left out of its neighbors' means.

    Args:
        values: Values at evenly logged steps.
        window: Number of values in a window, odd.
    """
    count = len(values)
    finite = np.isfinite(values)
    at = np.arange(count)
    half = np.minimum(window // 2, np.minimum(at, count - 1 - at))
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    begin, end = at - half, at + half + 1
    means = (sums[end] - sums[begin]) / np.maximum(counts[end] - counts[begin], 1)
    return np.where(finite, means, np.nan)


def smoothed(curve: Curve) -> Curve:
    """Return a curve's running mean, with a window for its own number of points."""

    def smooth(record: Record) -> tuple[np.ndarray, np.ndarray]:
        x, y = curve(record)
        return x, running_mean(y, window_of(len(y)))

    return smooth


@paper
def loss(records: Sequence[Record]) -> Plate:
    """Draw training and validation loss against tokens (or samples, if a run counts no tokens)."""
    axis, groups = axis_of(records), with_arms(records)
    lines = [line for group in groups for line in lines_of(group, axis)]
    has_baselines = any(baselines(comparison, "loss") for comparison in comparisons(records))
    figure = line_figure(
        lines,
        x=axis_label(axis),
        y="loss (nats per token)" if axis == "tokens" else "loss",
        log="y" if is_wide([line.band.mean for line in lines]) else "",
        counts="x",
        decorate=lambda axes, _: draw_baselines(axes, records, ValidationMetric("", "loss")),
    )
    shown = {line.group.label: line.group for line in lines if line.is_finite}
    caption = [f"Loss against {axis}.", smoothing_text(list(shown.values())), BASELINES * has_baselines]
    if any(line.quantity == "validation loss" and line.is_finite for line in lines):
        caption.insert(2, "Markers: validation loss.")
    return Plate(
        name="loss",
        title="Loss",
        caption=" ".join(filter(None, [*caption, shown_text(list(shown.values()))])),
        panels=[] if figure is None else [Panel("", f"Training and validation loss against {axis}", figure)],
        missing=without_rows(records, "loss", "training loss"),
    )


def lines_of(group: Group, axis: str, name: str = "loss") -> list[Line]:
    """Return a group's lines of a metric: raw, smoothed if there are enough points, and validation; one is labeled."""
    curve, words = training_curve(name), name.replace("_", " ")
    raw = over_training(group, curve, axis=axis, label="", quantity=f"training {words}", linewidth=0.8)
    validation = over_training(
        group, validation_curve(f"validation_{name}"), axis=axis, label="", quantity=f"validation {words}",
        linestyle="none", marker=group.look.marker, markersize=4, markeredgecolor="white", markeredgewidth=0.4,
    )  # fmt: skip
    lines = [raw]
    if any(window > 1 for window in _windows(group)):
        pale = {"linewidth": 0.5, "alpha": _PALE, "linestyle": "-"}
        lines = [
            replace(raw, look={**raw.look, **pale}, has_band=False, is_reference=False),
            over_training(
                group, smoothed(curve), axis=axis, label="", quantity=f"running mean of the training {words}"
            ),
        ]
    if lines[-1].is_finite:  # the legend shows the validation's marker too
        both = {"marker": group.look.marker, "markevery": slice(0, 0)} if validation.is_finite else {}
        lines[-1] = replace(lines[-1], label=group.label, look={**lines[-1].look, **both})
    else:
        validation = replace(validation, label=group.label)
    return [*lines, replace(validation, is_reference=False)]


def _windows(group: Group) -> list[int]:
    return [window_of(len(record.training)) for record in group.records]


def smoothing_text(groups: Sequence[Group], words: str = "training loss") -> str:
    """Return what the lines of a plot are: single logged steps, or their running mean."""
    windows = sorted({window for group in groups for window in _windows(group)})
    if not windows or windows == [1]:
        return f"Lines: {words} of single logged steps." if windows else ""
    wide = [window for window in windows if window > 1]
    count = f"{wide[0]:,}" if len(wide) == 1 else f"{wide[0]:,} to {wide[-1]:,}"
    few = f" (runs of fewer than {FEWEST_POINTS} logged steps: as logged)" if windows[0] == 1 else ""
    return (
        f"Pale: {words} of single logged steps; on top, its centered running mean over {count} logged "
        f"steps{few}, fewer near both ends."
    )
