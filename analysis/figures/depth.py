"""Plots of the residual stream against depth: variance with its fits, and maxima.

Depth is counted in blocks: the embedding is at 0, the stream after layer l's attention at l + 0.5, after its MLP at
l + 1. All functions take the records of runs or of inspected models; a model without a time axis has a single step.
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

_MOST_STEPS = 6  # distinguishable shades of one color
FP16_MAX = float(np.finfo(np.float16).max)  # as in moments.py, which imports torch and so takes seconds


class TrainingPoint(NamedTuple):
    """The point of training that one panel shows, with the step of each line."""

    name: str
    title: str
    steps: Mapping[str, float]  # by label of the group


def measured_steps(group: Group, name: str) -> np.ndarray:
    """Return the steps measured in every run of a group that got that far, ascending.

    Args:
        group: The runs; those without any row do not count.
        name: "activations" or "gradients".
    """
    per_run = [np.unique(column(getattr(record, name), "step")) for record in group.records]
    per_run = [steps for steps in per_run if len(steps)]
    every = np.unique(np.concatenate([*per_run, np.empty(0)]))
    return every[[all(step in steps or step > steps[-1] for steps in per_run) for step in every]]


def first_and_last(groups: Sequence[Group], name: str) -> list[TrainingPoint]:
    """Return the first and the last measured point of training, or just one if nothing was measured twice."""
    per_group = {group.label: measured_steps(group, name) for group in groups}
    per_group = {label: steps for label, steps in per_group.items() if len(steps)}
    if not per_group:
        return []
    first = {label: float(steps[0]) for label, steps in per_group.items()}
    last = {label: float(steps[-1]) for label, steps in per_group.items() if len(steps) > 1}
    opening = "at initialization" if set(first.values()) == {1.0} else _at_step("first measured step", first)
    if not last:
        return [TrainingPoint("", "" if set(first.values()) == {0.0} else opening, first)]
    return [TrainingPoint("first", opening, first), TrainingPoint("last", _at_step("last measured step", last), last)]


def measured_at(groups: Sequence[Group], point: TrainingPoint) -> list[Group]:
    """Return the groups that were measured at a point of training."""
    return [group for group in groups if group.label in point.steps]


def depth_of(site: str, layer: float) -> float | None:
    """Return the depth in blocks of a site of the residual stream, or None for any other site."""
    if site == "embedding":
        return 0.0
    if not site.endswith(".stream") or not np.isfinite(layer):
        return None
    return layer + (0.5 if site == "attention.stream" else 1.0)


def stream_rows(record: Record, step: float | None = None) -> pd.DataFrame:
    """Return the rows of the residual stream at one step or at all steps, with a "depth" column."""
    rows = record.activations if step is None else rows_where(record.activations, step=step)
    depths = [depth_of(site, layer) for site, layer in zip(column(rows, "site"), column(rows, "layer"), strict=True)]
    rows = rows.assign(depth=np.array(depths, dtype=float))
    return rows.iloc[np.flatnonzero(np.isfinite(column(rows, "depth")))].sort_values(["step", "depth"])


def stream_curve(step: float, quantity: str) -> Curve:
    """Return the curve over depth of a quantity of the stream at one step."""

    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        rows = stream_rows(record, step)
        return column(rows, "depth"), column(rows, quantity)

    return curve


def largest_over_depth(quantity: str) -> Curve:
    """Return the curve over steps of a quantity's largest value over all depths of the stream."""

    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        rows = stream_rows(record)
        steps, values = column(rows, "step"), column(rows, quantity)
        distinct = np.unique(steps)
        return distinct, np.array([_largest(values[steps == step]) for step in distinct])

    return curve


def draw_depth(axes: Axes, group: Group, curve: Curve, *, label: str, **line) -> Band:
    """Draw a group over depth: a solid line with markers, and a band over its seeds."""
    drawn = band(group, curve)
    if np.isfinite(drawn.mean).any():
        axes.plot(drawn.x, drawn.mean, label=label, **{"color": group.look.color, "marker": group.look.marker, **line})
        if len(group.records) > 1:
            shade(axes, drawn.x, drawn.low, drawn.high, color=group.look.color)
    return drawn


class GrowthOfGroup(NamedTuple):
    """Growth of a group's variance with depth at one step."""

    group: Group
    step: float
    growth: Growth


def variance_growth(records: Sequence[Record]) -> list[GrowthOfGroup]:
    """Fit variance against depth at the first and last measured step of each group, in the order of the groups."""
    return growth_of(group_records(records))


def growth_of(groups: Sequence[Group]) -> list[GrowthOfGroup]:
    """Fit the groups' variance against depth at their first and last measured step.

    The embedding's own variance is excluded: the first sub-layer may set a different scale.
    """
    points = first_and_last(groups, "activations")
    growths = []
    for group in groups:
        for point in points:
            if group.label not in point.steps:
                continue
            curve = band(group, stream_curve(point.steps[group.label], "variance"))
            growth = fit_growth(curve.x[curve.x > 0], curve.mean[curve.x > 0])
            if growth is not None:
                growths.append(GrowthOfGroup(group, point.steps[group.label], growth))
    return growths


@paper
def variance(records: Sequence[Record]) -> Plate:
    """Draw the variance of the residual stream against depth: first, last, and over training for each line."""
    groups, notes = for_depth(records)
    axis = axis_of(records)
    labels = {group.label for group in groups}
    growths = [growth for growth in variance_growth(records) if growth.group.label in labels]
    panels = []
    for point in first_and_last(groups, "activations"):
        axes = new_axes(x=DEPTH, y="variance of the residual stream", title=point.title)
        fits = [_draw_variance(axes, group, point.steps[group.label]) for group in measured_at(groups, point)]
        _fit_legend(axes, any(fits))
        if axes.get_lines():
            panels.append(Panel(point.name, f"Variance against depth, {point.title}", finish(axes, log="y")))
    panels += [panel for i, group in enumerate(groups) if (panel := _variance_over_training(group, i)) is not None]
    if over := _over_training(groups, axis, "variance", "largest variance over depth"):
        panels.append(over)
    return Plate(
        name="variance",
        title="Variance of the residual stream",
        caption="Variance over all elements of all tokens in the batch, after each sub-layer. Dashed: "
        "least-squares line; dotted: least-squares exponential. Both are fitted to the variance itself, excluding the "
        "embedding at depth 0; a straight line appears curved on this logarithmic axis. Shades run from light at the "
        f"start of training to dark at its end. {SEEDS} Post-LN keeps the variance near the square of its norms' "
        "scales by construction; the other placements add to the stream.",
        panels=panels,
        findings=[*notes, *(verdict(growth) for growth in growths)] if panels else [],
        missing=missing_rows(records, "activations"),
    )


def verdict(of_group: GrowthOfGroup) -> str:
    """Return a sentence on how the variance grows, based on the two fits."""
    growth, linear, exponential = of_group.growth, of_group.growth.linear, of_group.growth.exponential
    when = f", step {of_group.step:,.0f}" if of_group.step else ""  # 0: a model without training steps
    head = f"{of_group.group.label}{when}: "
    both = f"R2 {linear.r2:.3f} for the line, {exponential.r2:.3f} for the exponential"
    rate = f"{linear.rate:.3g} per block"
    doubling = f"doubling every {exponential.doubling_depth:.3g} blocks"
    if exponential.rate < 0:
        doubling = f"halving every {-exponential.doubling_depth:.3g} blocks"
    words = {
        "constant": f"the variance is constant over depth (largest over smallest {growth.ratio:.3f}).",
        "linear": f"the variance grows linearly rather than exponentially, by {rate} ({both}).",
        "exponential": f"the variance grows exponentially rather than linearly, {doubling} ({both}).",
        "either": f"a line and an exponential fit the variance equally well, {rate} ({both}).",
        "neither": f"neither a line nor an exponential fits the variance ({both}).",
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
        points = first_and_last(groups, "activations")
        if points:
            point = points[-1]
            axes = new_axes(x=DEPTH, y=words, title=point.title)
            for group in measured_at(groups, point):
                curve = stream_curve(point.steps[group.label], quantity)
                draw_depth(axes, group, curve, label=group.label)
            _limit(axes, limit)
            if _has_data(axes):
                panels.append(Panel(f"{file}-depth", f"{words} against depth", finish(axes, log="y")))
    return Plate(
        name="maxima",
        title="Maxima and massive activations",
        caption="Largest absolute element of the residual stream: over all depths against training, and against "
        f"depth. The line at {FP16_MAX:,.0f} marks the largest fp16 number. Top-1 over median: largest over median |x| "
        "within a token, maximum over tokens; large values indicate massive activations (arXiv 2402.17762). "
        f"{SEEDS}",
        panels=panels,
        findings=[*notes, *_overflows(records)] if panels else [],
        missing=missing_rows(records, "activations"),
    )


def missing_rows(records: Sequence[Record], name: str) -> list[str]:
    """Return, for each record without rows of "activations" or "gradients", the reason why it has none."""
    return [absence(record, name) for record in records if getattr(record, name).empty]


def _draw_variance(axes: Axes, group: Group, step: float) -> bool:
    drawn = draw_depth(axes, group, stream_curve(step, "variance"), label=group.label)
    growth = fit_growth(drawn.x[drawn.x > 0], drawn.mean[drawn.x > 0])
    if growth is None or growth.verdict == "constant":
        return False
    depth = np.linspace(float(drawn.x[drawn.x > 0].min()), float(drawn.x.max()), 200)
    _draw_fit(axes, group, growth.linear, depth, "--")
    _draw_fit(axes, group, growth.exponential, depth, ":")
    return True


def _draw_fit(axes: Axes, group: Group, fit: Fit, depth: np.ndarray, line: str) -> None:
    values = fit(depth)
    values = np.where(values > 0, values, np.nan)  # a line may drop below zero, which a logarithmic axis cannot show
    axes.plot(depth, values, line, color=group.look.color, linewidth=0.8, label="_", gid=f"{fit.kind} fit")


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
    for step, color in zip(chosen, shades(group.look.color, len(chosen)), strict=True):
        draw_depth(axes, group, stream_curve(step, "variance"), label=f"step {step:,.0f}", color=color)
    if not axes.get_lines():
        return None
    return Panel(f"training-{index + 1}", f"Variance against depth over training, {group.label}", finish(axes, log="y"))


def _over_training(
    groups: Sequence[Group], axis: str, quantity: str, words: str, *, file: str = "largest", limit: float | None = None
) -> Panel | None:
    """Return the panel of a quantity's maximum over depth, or None if nothing was measured twice."""
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
    axes.set_yscale("log", nonpositive="mask")  # before the limits: a linear axis may have negative ones
    axes.set_ylim(top=limit * 10)  # room for the annotation
    axes.annotate(
        f"fp16 limit {limit:,.0f}", (0.01, limit), xycoords=("axes fraction", "data"), va="bottom", fontsize=7,
        xytext=(0, 1.5), textcoords="offset points",
    )  # fmt: skip


def _has_data(axes: Axes) -> bool:
    return any(line.get_gid() is None for line in axes.get_lines())


def _overflows(records: Sequence[Record]) -> list[str]:
    shares = [(record, _largest(column(record.activations, "fp16_overflow_share"))) for record in records]
    return [f"{r.label}: up to {share:.2g} of a site's elements overflow fp16." for r, share in shares if share > 0]


def _at_step(words: str, steps: Mapping[str, float]) -> str:
    distinct = sorted(set(steps.values()))
    span = f"{distinct[0]:,.0f}" if len(distinct) == 1 else f"{distinct[0]:,.0f} to {distinct[-1]:,.0f}"
    return f"{words} ({span})"


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else float("nan")
