"""The residual stream against depth: variance with its fits, and maxima.

Depth is counted in blocks: the embedding lies at 0, the stream after layer l's attention at l + 0.5, after its MLP at
l + 1. Every function takes the records of runs or of inspected models; a model without a time axis has one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.training import SEEDS, axis_label, draw_band
from analysis.fits import Fit, Growth, fit_growth
from analysis.groups import Band, Curve, Group, axis_of, band, for_depth, group_records
from analysis.runs import Record, absence, column, rows_where
from analysis.style import DEPTH, Panel, Plate, finish, new_axes, paper, shade, shades

_MOST_STEPS = 6  # shades of one colour that can be told apart
FP16_MAX = float(np.finfo(np.float16).max)  # as in moments.py, whose torch takes seconds to import


class Moment(NamedTuple):
    """A point of training that one panel shows: for every line the step that it has there."""

    name: str
    title: str
    steps: Mapping[str, float]  # by label of the group


def measured_steps(group: Group, name: str) -> np.ndarray:
    """Return the steps that every run of a group which came so far has rows of, ascending.

    Args:
        group: Runs without any row do not count.
        name: "activations" or "gradients".
    """
    found = [np.unique(column(getattr(record, name), "step")) for record in group.records]
    found = [steps for steps in found if len(steps)]
    every = np.unique(np.concatenate([*found, np.empty(0)]))
    return every[[all(step in steps or step > steps[-1] for steps in found) for step in every]]


def first_and_last(groups: Sequence[Group], name: str) -> list[Moment]:
    """Return the first and the last measured moment; one alone where nothing was measured twice."""
    steps = {group.label: measured_steps(group, name) for group in groups}
    steps = {label: found for label, found in steps.items() if len(found)}
    if not steps:
        return []
    first = {label: float(found[0]) for label, found in steps.items()}
    last = {label: float(found[-1]) for label, found in steps.items() if len(found) > 1}
    opening = "at initialisation" if set(first.values()) == {1.0} else _at_step("first measured step", first)
    if not last:
        return [Moment("", "" if set(first.values()) == {0.0} else opening, first)]
    return [Moment("first", opening, first), Moment("last", _at_step("last measured step", last), last)]


def having(groups: Sequence[Group], moment: Moment) -> list[Group]:
    """Return the groups that a moment has a step for."""
    return [group for group in groups if group.label in moment.steps]


def depth_of(site: str, layer: float) -> float | None:
    """Return the depth of a site of the residual stream in blocks, None for any other site."""
    if site == "embedding":
        return 0.0
    if not site.endswith(".stream") or not np.isfinite(layer):
        return None
    return layer + (0.5 if site == "attention.stream" else 1.0)


def stream_rows(record: Record, step: float | None = None) -> pd.DataFrame:
    """Return the rows of the residual stream with their "depth", of one step or of all."""
    rows = record.activations if step is None else rows_where(record.activations, step=step)
    depths = [depth_of(site, layer) for site, layer in zip(column(rows, "site"), column(rows, "layer"), strict=True)]
    rows = rows.assign(depth=np.array(depths, dtype=float))
    return rows.iloc[np.flatnonzero(np.isfinite(column(rows, "depth")))].sort_values(["step", "depth"])


def stream_curve(step: float, quantity: str) -> Curve:
    """Return the curve of a quantity of the stream over depth, at one step."""

    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        rows = stream_rows(record, step)
        return column(rows, "depth"), column(rows, quantity)

    return curve


def largest_over_depth(quantity: str) -> Curve:
    """Return the curve of the largest value over all depths of the stream, over steps."""

    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        rows = stream_rows(record)
        steps, values = column(rows, "step"), column(rows, quantity)
        found = np.unique(steps)
        return found, np.array([_largest(values[steps == step]) for step in found])

    return curve


def draw_depth(axes: Axes, group: Group, curve: Curve, *, label: str, **line) -> Band:
    """Draw a group over depth: solid, with markers, and a band over its seeds."""
    found = band(group, curve)
    if np.isfinite(found.mean).any():
        axes.plot(found.x, found.mean, label=label, **{"color": group.look.colour, "marker": group.look.marker, **line})
        if len(group.records) > 1:
            shade(axes, found.x, found.low, found.high, colour=group.look.colour)
    return found


class GrowthOfGroup(NamedTuple):
    """How a group's variance grows with depth at one step."""

    group: Group
    step: float
    growth: Growth


def variance_growth(records: Sequence[Record]) -> list[GrowthOfGroup]:
    """Fit variance against depth, first and last measured step of every group, in the order of the groups.

    The embedding's own variance is not fitted: the first sub-layer may set another scale.
    """
    groups = group_records(records)
    moments = first_and_last(groups, "activations")
    found = []
    for group in groups:
        for moment in moments:
            if group.label not in moment.steps:
                continue
            curve = band(group, stream_curve(moment.steps[group.label], "variance"))
            growth = fit_growth(curve.x[curve.x > 0], curve.mean[curve.x > 0])
            if growth is not None:
                found.append(GrowthOfGroup(group, moment.steps[group.label], growth))
    return found


@paper
def variance(records: Sequence[Record]) -> Plate:
    """Draw the variance of the residual stream against depth: first, last, and over training for each line."""
    groups, notes = for_depth(records)
    axis = axis_of(records)
    shown = {group.label for group in groups}
    growths = [found for found in variance_growth(records) if found.group.label in shown]
    panels = []
    for moment in first_and_last(groups, "activations"):
        axes = new_axes(x=DEPTH, y="variance of the residual stream", title=moment.title)
        fits = [_draw_variance(axes, group, moment.steps[group.label]) for group in having(groups, moment)]
        _fit_legend(axes, any(fits))
        if axes.get_lines():
            panels.append(Panel(moment.name, f"Variance against depth, {moment.title}", finish(axes, log="y")))
    panels += [panel for i, group in enumerate(groups) if (panel := _variance_over_training(group, i)) is not None]
    if over := _over_training(groups, axis, "variance", "largest variance over depth"):
        panels.append(over)
    return Plate(
        name="variance",
        title="Variance of the residual stream",
        caption="Variance over all elements of all tokens of the batch, after each sub-layer. Dashed: "
        "least-squares line; dotted: least-squares exponential; both are fitted to the variance itself, without the "
        "embedding at depth 0, and a line is curved on this logarithmic axis. Shades from light to dark: training from "
        f"its start to its end. {SEEDS} Post-LN keeps the variance near the square of its norms' scales by "
        "construction; the other placements add to the stream.",
        panels=panels,
        findings=[*notes, *(verdict(found) for found in growths)] if panels else [],
        missing=missing_rows(records, "activations"),
    )


def verdict(found: GrowthOfGroup) -> str:
    """Say in a sentence how the variance grows, from the two fits."""
    growth, linear, exponential = found.growth, found.growth.linear, found.growth.exponential
    when = f", step {found.step:,.0f}" if found.step else ""  # 0: a model that was not seen in training
    head = f"{found.group.label}{when}: "
    both = f"R2 {linear.r2:.3f} for the line, {exponential.r2:.3f} for the exponential"
    rate = f"{linear.rate:.3g} per block"
    doubling = f"doubling every {exponential.doubling_depth:.3g} blocks"
    if exponential.rate < 0:
        doubling = f"halving every {-exponential.doubling_depth:.3g} blocks"
    words = {
        "constant": f"the variance is constant over depth (largest over smallest {growth.ratio:.3f}).",
        "linear": f"the variance grows linearly rather than exponentially, by {rate} ({both}).",
        "exponential": f"the variance grows exponentially rather than linearly, {doubling} ({both}).",
        "either": f"line and exponential describe the variance equally well, {rate} ({both}).",
        "neither": f"neither a line nor an exponential describes the variance ({both}).",
    }
    text = head + words[growth.verdict]
    falls = linear.rate < 0 if growth.verdict == "linear" else exponential.rate < 0
    return text.replace("grows", "falls") if falls else text


@paper
def maxima(records: Sequence[Record]) -> Plate:
    """Draw the largest elements of the stream over training and over depth, with the limit of fp16."""
    groups, notes = for_depth(records)
    axis = axis_of(records)
    panels = []
    for quantity, words, file in (
        ("max_abs", "largest |x| of the stream", "abs"),
        ("top1_over_median", "top-1 over median |x| of a token", "ratio"),
    ):
        limit = FP16_MAX if quantity == "max_abs" else None
        if over := _over_training(groups, axis, quantity, words, file=f"{file}-training", limit=limit):
            panels.append(over)
        moments = first_and_last(groups, "activations")
        if moments:
            moment = moments[-1]
            axes = new_axes(x=DEPTH, y=words, title=moment.title)
            for group in having(groups, moment):
                curve = stream_curve(moment.steps[group.label], quantity)
                draw_depth(axes, group, curve, label=group.label)
            _limit(axes, limit)
            if _has_data(axes):
                panels.append(Panel(f"{file}-depth", f"{words} against depth", finish(axes, log="y")))
    return Plate(
        name="maxima",
        title="Maxima and massive activations",
        caption="Largest absolute element of the residual stream, over all depths against training, and against "
        f"depth; the line at {FP16_MAX:,.0f} is the largest number of fp16. Top-1 over median: largest over median |x| "
        f"within a token, its maximum over tokens; a large value marks massive activations (arXiv 2402.17762). {SEEDS}",
        panels=panels,
        findings=[*notes, *_overflows(records)] if panels else [],
        missing=missing_rows(records, "activations"),
    )


def missing_rows(records: Sequence[Record], name: str) -> list[str]:
    """Say for every record without rows of "activations" or "gradients" why it has none."""
    return [absence(record, name) for record in records if getattr(record, name).empty]


def _draw_variance(axes: Axes, group: Group, step: float) -> bool:
    found = draw_depth(axes, group, stream_curve(step, "variance"), label=group.label)
    growth = fit_growth(found.x[found.x > 0], found.mean[found.x > 0])
    if growth is None or growth.verdict == "constant":
        return False
    depth = np.linspace(float(found.x[found.x > 0].min()), float(found.x.max()), 200)
    _draw_fit(axes, group, growth.linear, depth, "--")
    _draw_fit(axes, group, growth.exponential, depth, ":")
    return True


def _draw_fit(axes: Axes, group: Group, fit: Fit, depth: np.ndarray, line: str) -> None:
    values = fit(depth)
    values = np.where(values > 0, values, np.nan)  # a line may pass below zero, where a logarithm has no place
    axes.plot(depth, values, line, color=group.look.colour, linewidth=0.8, label="_", gid=f"{fit.kind} fit")


def _fit_legend(axes: Axes, any_fit: bool) -> None:
    if any_fit:
        axes.plot([], [], "--", color="#555555", linewidth=0.8, label="linear fit")
        axes.plot([], [], ":", color="#555555", linewidth=0.8, label="exponential fit")


def _variance_over_training(group: Group, index: int) -> Panel | None:
    steps = measured_steps(group, "activations")
    if len(steps) < 3:
        return None
    chosen = steps[np.unique(np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int))]
    axes = new_axes(x=DEPTH, y="variance of the residual stream", title=group.label)
    for step, colour in zip(chosen, shades(group.look.colour, len(chosen)), strict=True):
        draw_depth(axes, group, stream_curve(step, "variance"), label=f"step {step:,.0f}", color=colour)
    if not axes.get_lines():
        return None
    return Panel(f"training-{index + 1}", f"Variance against depth over training, {group.label}", finish(axes, log="y"))


def _over_training(
    groups: Sequence[Group], axis: str, quantity: str, words: str, *, file: str = "largest", limit: float | None = None
) -> Panel | None:
    """Return the panel of a quantity's maximum over depth, None where nothing was measured twice."""
    if all(len(measured_steps(group, "activations")) < 2 for group in groups):
        return None
    axes = new_axes(x=axis_label(axis), y=words)
    for group in groups:
        draw_band(
            axes,
            group,
            largest_over_depth(quantity),
            axis=axis,
            label=group.label,
            marker=group.look.marker,
            markersize=3,
        )
    if not axes.get_lines():
        return None
    _limit(axes, limit)
    return Panel(file, f"{words} against {axis}", finish(axes, log="y", counts="x"))


def _limit(axes: Axes, limit: float | None) -> None:
    if limit is None or not axes.get_lines():
        return
    axes.axhline(limit, color="#1b1b1b", linewidth=0.8, label="_", gid="fp16 limit")
    axes.set_yscale("log", nonpositive="mask")  # before the limits: those of a linear axis may be negative
    axes.set_ylim(top=limit * 10)  # room for the words
    axes.annotate(
        f"fp16 limit {limit:,.0f}", (0.01, limit), xycoords=("axes fraction", "data"), va="bottom", fontsize=7,
        xytext=(0, 1.5), textcoords="offset points",
    )  # fmt: skip


def _has_data(axes: Axes) -> bool:
    return any(line.get_gid() is None for line in axes.get_lines())


def _overflows(records: Sequence[Record]) -> list[str]:
    shares = [(record, _largest(column(record.activations, "fp16_overflow_share"))) for record in records]
    return [f"{r.label}: up to {share:.2g} of a site's elements lie beyond fp16." for r, share in shares if share > 0]


def _at_step(words: str, steps: Mapping[str, float]) -> str:
    found = sorted(set(steps.values()))
    span = f"{found[0]:,.0f}" if len(found) == 1 else f"{found[0]:,.0f} to {found[-1]:,.0f}"
    return f"{words} ({span})"


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else float("nan")
