"""Plots of the residual stream against depth: variance with its fits, and maxima.

Depth is counted in blocks: the embedding is at 0, the stream after layer l's attention at l + 0.5, after its MLP at
l + 1. All functions take the records of runs or of inspected models; a model without a time axis has a single step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.lines import (
    Decorate,
    Line,
    draw,
    draw_extra,
    finish_grid,
    line_figure,
    over_depth,
    over_training,
    panel_grid,
    shown_text,
)
from analysis.figures.training import axis_label
from analysis.fits import Growth, fit_growth
from analysis.groups import MOST_LINES, Curve, Group, axis_of, band, for_depth, group_records
from analysis.runs import Record, absence, column, rows_where
from analysis.style import DEPTH, Panel, Plate, finish, new_axes, paper, set_scales, shades

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


def depth_figure(
    groups: Sequence[Group],
    point: TrainingPoint,
    curve_at: Callable[[float], Curve],
    *,
    x: str = DEPTH,
    y: str,
    decorate: Decorate | None = None,
) -> Figure | None:
    """Draw a quantity over depth at one point of training; return None if nothing is finite.

    Args:
        groups: The groups; those not measured at this point are left out.
        point: The point of training.
        curve_at: Function from a step to the curve there.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        decorate: As in `line_figure`.
    """
    lines = [over_depth(group, curve_at(point.steps[group.label])) for group in measured_at(groups, point)]
    return line_figure(lines, x=x, y=y, title=point.title, log="y", decorate=decorate)


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
    labels = {group.label for group in groups}
    growths = [growth for growth in variance_growth(records) if growth.group.label in labels]
    panels = []
    for point in first_and_last(groups, "activations"):
        figure = depth_figure(
            groups,
            point,
            lambda step: stream_curve(step, "variance"),
            y="variance of the residual stream",
            decorate=_draw_fits,
        )
        if figure is not None:
            panels.append(Panel(point.name, f"Variance against depth, {point.title}", figure))
    panels += _variance_over_training(groups)
    if over := _over_training(groups, axis_of(records), "variance", "largest variance over depth"):
        panels.append(over)
    return Plate(
        name="variance",
        title="Variance of the residual stream",
        caption=" ".join([_variance_caption(groups, growths, panels), *notes]),
        panels=panels,
        findings=[verdict(growth) for growth in growths] if panels else [],
        missing=missing_rows(records, "activations"),
    )


def _variance_caption(groups: Sequence[Group], growths: Sequence[GrowthOfGroup], panels: Sequence[Panel]) -> str:
    sentences = ["Variance over all elements of all tokens in the batch, after each sub-layer."]
    if any(growth.growth.verdict != "constant" for growth in growths):
        sentences.append(
            "Dashed: least-squares line; dotted: least-squares exponential. Both are fitted to the variance itself, "
            "excluding the embedding at depth 0; a straight line appears curved on this logarithmic axis."
        )
    if any(panel.name.startswith("training") for panel in panels):
        sentences.append("Over training: shades run from light at its start to dark at its end.")
    placements = {group.placement for group in groups}
    if "post" in placements:
        sentences.append("Post-LN keeps the variance near the square of its norms' scales by construction.")
    return " ".join([*sentences, shown_text(groups)])


def verdict(of_group: GrowthOfGroup) -> str:
    """Return a sentence on how the variance grows, based on the two fits."""
    growth, linear, exponential = of_group.growth, of_group.growth.linear, of_group.growth.exponential
    when = f", step {of_group.step:,.0f}" if of_group.step else ""  # 0: a model without training steps
    head = f"{of_group.group.label}{when}: "
    rate, both = growth.slope_text, growth.r2_text
    words = {
        "constant": f"the variance is constant over depth (largest over smallest {growth.ratio:.3f}).",
        "linear": f"the variance grows linearly rather than exponentially, by {rate} ({both}).",
        "exponential": f"the variance grows exponentially rather than linearly, {growth.doubling_text} ({both}).",
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
        decorate = _draw_fp16_limit if quantity == "max_abs" else None
        if over := _over_training(groups, axis, quantity, words, file=f"{file}-training", decorate=decorate):
            panels.append(over)
        for point in first_and_last(groups, "activations")[-1:]:
            figure = depth_figure(
                groups, point, lambda step, name=quantity: stream_curve(step, name), y=words, decorate=decorate
            )
            if figure is not None:
                panels.append(Panel(f"{file}-depth", f"{words} against depth", figure))
    return Plate(
        name="maxima",
        title="Maxima and massive activations",
        caption=" ".join([_maxima_caption(panels, axis), shown_text(groups), *notes]),
        panels=panels,
        findings=_overflows(records) if panels else [],
        missing=missing_rows(records, "activations"),
    )


def _maxima_caption(panels: Sequence[Panel], axis: str) -> str:
    names = {panel.name for panel in panels}
    sentences = []
    if names & {"abs-training", "abs-depth"}:
        ways = [
            words
            for name, words in (("abs-training", f"over all depths against {axis}"), ("abs-depth", "against depth"))
            if name in names
        ]
        sentences.append(
            f"Largest absolute element of the residual stream, {' and '.join(ways)}. The line at {FP16_MAX:,.0f} marks "
            "the largest fp16 number."
        )
    if names & {"ratio-training", "ratio-depth"}:
        sentences.append(
            "Top-1 over median: largest over median |x| within a token, maximum over tokens; large values indicate "
            "massive activations (arXiv 2402.17762)."
        )
    return " ".join(sentences)


def missing_rows(records: Sequence[Record], name: str) -> list[str]:
    """Return, for each record without rows of "activations" or "gradients", the reason why it has none."""
    return [absence(record, name) for record in records if getattr(record, name).empty]


def _draw_fits(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw both fits of every line that is not constant, and explain their dashes in the legend."""
    any_fit = False
    for line in lines:
        x, mean = line.band.x, line.band.mean
        growth = fit_growth(x[x > 0], mean[x > 0])
        if growth is None or growth.verdict == "constant":
            continue
        any_fit = True
        depth = np.linspace(float(x[x > 0].min()), float(x.max()), 200)
        for fit, dashes in ((growth.linear, "--"), (growth.exponential, ":")):
            values = fit(depth)  # a line may drop below zero, which a logarithmic axis cannot show
            values = np.where(values > 0, values, np.nan)
            draw_extra(axes, line, depth, values, quantity=f"{fit.kind} fit", linestyle=dashes, linewidth=0.8)
    if any_fit:
        axes.plot([], [], "--", color="#555555", linewidth=0.8, label="linear fit")
        axes.plot([], [], ":", color="#555555", linewidth=0.8, label="exponential fit")


def _variance_over_training(groups: Sequence[Group]) -> list[Panel]:
    """Return a panel for each group that was measured three times; of many groups, one figure with small ones."""
    words = "variance of the residual stream"
    chosen = [(group, steps) for group in groups if (steps := _shown_steps(group)) is not None]
    if len(chosen) > MOST_LINES:
        return [_variance_multiples(chosen, y=words)]
    panels = []
    for i, (group, steps) in enumerate(chosen):
        axes = new_axes(x=DEPTH, y=words, title=group.label)
        for line in _lines_of_steps(group, steps):
            draw(axes, line)
        if axes.get_lines():
            alt = f"Variance against depth over training, {group.label}"
            panels.append(Panel(f"training-{i + 1}", alt, finish(axes, log="y")))
    return panels


def _shown_steps(group: Group) -> np.ndarray | None:
    """Return at most six of the measured steps, evenly spaced among them; None for fewer than three."""
    steps = measured_steps(group, "activations")
    if len(steps) < 3:
        return None
    return steps[np.unique(np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int))]


def _lines_of_steps(group: Group, steps: np.ndarray) -> list[Line]:
    lines = [
        over_depth(group, stream_curve(step, "variance"), label=f"step {step:,.0f}", quantity=f"step {step:.0f}",
                   color=color)
        for step, color in zip(steps, shades(group.look.color, len(steps)), strict=True)
    ]  # fmt: skip
    return [line for line in lines if line.is_finite]


def _variance_multiples(chosen: Sequence[tuple[Group, np.ndarray]], *, y: str) -> Panel:
    """Draw the variance over training in a small panel for each group, its steps from light to dark."""
    figure, panels = panel_grid(len(chosen))
    for axes, (group, steps) in zip(panels, chosen, strict=True):
        for line in _lines_of_steps(group, steps):
            draw(axes, replace(line, look={**line.look, "markersize": 2, "linewidth": 0.9}), label="")
    for axes in panels:
        set_scales(axes, log="y")
    same = len({tuple(steps) for _, steps in chosen}) == 1
    listed = ", ".join(f"{step:,.0f}" for step in chosen[0][1])
    title = f"steps {listed}, from light to dark" if same else "from the first measured step (light) to the last (dark)"
    finish_grid(figure, panels, [group.arm or group.label for group, _ in chosen], x=DEPTH, y=y, title=title)
    return Panel("training", f"Variance against depth, {title}", figure)


def _over_training(
    groups: Sequence[Group],
    axis: str,
    quantity: str,
    words: str,
    *,
    file: str = "largest",
    decorate: Decorate | None = None,
) -> Panel | None:
    """Return the panel of a quantity's maximum over depth, or None if nothing was measured twice."""
    if all(len(measured_steps(group, "activations")) < 2 for group in groups):
        return None
    curve = largest_over_depth(quantity)
    lines = [over_training(group, curve, axis=axis, marker=group.look.marker, markersize=3) for group in groups]
    figure = line_figure(lines, x=axis_label(axis), y=words, log="y", counts="x", decorate=decorate)
    return None if figure is None else Panel(file, f"{words} against {axis}", figure)


def _draw_fp16_limit(axes: Axes, _: Sequence[Line]) -> None:
    axes.axhline(FP16_MAX, color="#1b1b1b", linewidth=0.8, label="_", gid="fp16 limit")
    axes.set_yscale("log", nonpositive="mask")  # before the limits: a linear axis may have negative ones
    axes.set_ylim(top=FP16_MAX * 10)  # room for the annotation
    axes.annotate(
        f"fp16 limit {FP16_MAX:,.0f}", (0.01, FP16_MAX), xycoords=("axes fraction", "data"), va="bottom", fontsize=6.5,
        xytext=(0, 1.5), textcoords="offset points",
    )  # fmt: skip


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
