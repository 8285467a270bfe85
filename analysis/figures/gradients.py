"""Plots of gradients, norm scales and updates against depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from analysis.figures.depth import draw_depth, first_and_last, measured_steps, missing_rows
from analysis.figures.modules import is_one_stack, module_updates, named_figure
from analysis.figures.training import SEEDS, axis_label, draw_band
from analysis.fits import Uniformity, uniformity
from analysis.groups import Curve, Group, axis_of, band, for_depth, group_records
from analysis.runs import Record, column, rows_where
from analysis.style import LAYER, Panel, Plate, finish, new_axes, paper


class UniformityOfGroup(NamedTuple):
    """Uniformity of the gradient norm over a group's layers at one step."""

    group: Group
    step: float
    uniformity: Uniformity


def layer_norms(step: float) -> Curve:
    """Return the curve of the gradient norm over layers at one step, without parameters outside the blocks."""

    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_where(record.gradients, step=step)
        return _by_layer(column(rows, "layer"), np.square(column(rows, "norm")))

    return curve


def gradient_uniformity(records: Sequence[Record]) -> list[UniformityOfGroup]:
    """Return the uniformity of each group's gradient norm over layers at its first and last measured step."""
    return uniformity_of(group_records(records))


def uniformity_of(groups: Sequence[Group]) -> list[UniformityOfGroup]:
    """Return the uniformity of the groups' gradient norm over layers at their first and last measured step."""
    points = first_and_last(groups, "gradients")
    uniformities = []
    for group in groups:
        for point in points:
            if group.label not in point.steps:
                continue
            result = uniformity(band(group, layer_norms(point.steps[group.label])).mean)
            if result is not None:
                uniformities.append(UniformityOfGroup(group, point.steps[group.label], result))
    return uniformities


@paper
def gradient_over_depth(records: Sequence[Record]) -> Plate:
    """Draw the gradient norm of every layer at the first and last measured step, with its uniformity in the legend."""
    groups, notes = for_depth(records)
    panels = []
    for point in first_and_last(groups, "gradients"):
        axes = new_axes(x=LAYER, y="gradient norm of the layer", title=point.title)
        for group in groups:
            if group.label not in point.steps:
                continue
            curve = layer_norms(point.steps[group.label])
            spread = uniformity(band(group, curve).mean)
            words = f": max/min {spread.max_over_min:.3g}, CV {spread.coefficient_of_variation:.2g}" if spread else ""
            draw_depth(axes, group, curve, label=group.label + words)
        if axes.get_lines():
            panels.append(Panel(point.name, f"Gradient norm against layer, {point.title}", finish(axes, log="y")))
    return Plate(
        name="gradient-depth",
        title="Gradient norm against depth",
        caption="L2 norm of the gradient over all parameters of a layer, after reduction over ranks and before "
        "clipping. max/min: largest over smallest layer, 1 if all layers are equal; CV: standard deviation over mean "
        f"of the layers, 0 if all layers are equal. {SEEDS}",
        panels=panels,
        findings=notes if panels else [],
        missing=missing_rows(records, "gradients"),
    )


@paper
def norm_scales(records: Sequence[Record]) -> Plate:
    """Draw the output norms' scales against depth: mean and range over the channels."""
    groups, _ = for_depth(records)
    scaled = [group for group in groups if any(not _output_scales(record).empty for record in group.records)]
    panels = []
    for point in first_and_last(scaled, "gradients"):
        axes = new_axes(x=LAYER, y="scale of the output norm", title=point.title)
        for group in scaled:
            if group.label not in point.steps:
                continue
            for branch in ("attention", "mlp"):
                _draw_scales(axes, group, point.steps[group.label], branch)
        if axes.get_lines():
            panels.append(Panel(point.name, f"Output-norm scales against layer, {point.title}", finish(axes)))
    without = [group for group in groups if group not in scaled and not group.records[0].gradients.empty]
    return Plate(
        name="norm-scales",
        title="Scales of the output norms",
        caption="Scale of each output norm: mean over channels, with a band from the smallest to the largest channel. "
        "Filled: after attention; hollow: after the MLP.",
        panels=panels,
        missing=[
            *missing_rows(records, "gradients"),
            *(f"{group.label}: has no output-norm scales" for group in without),
        ],
    )


@paper
def update_ratios(records: Sequence[Record]) -> Plate:
    """Draw the size of the updates relative to the weights, over training and over layers."""
    groups, notes = for_depth(records)
    axis = axis_of(records)
    panels = []
    if any(len(measured_steps(group, "gradients")) > 1 for group in groups):
        axes = new_axes(x=axis_label(axis), y="||update|| / ||weights||")
        for group in groups:
            look = {"marker": group.look.marker, "markersize": 3}
            draw_band(axes, group, _whole_update, axis=axis, label=group.label, **look)
        if axes.get_lines():
            figure = finish(axes, log="y", counts="x")
            panels.append(Panel("training", f"Update over weights against {axis}", figure))
    if panel := _last_update_panel(groups, by_layer=is_one_stack(records)):
        panels.append(panel)
    without = [
        r for r in records if not r.gradients.empty and not np.isfinite(column(r.gradients, "update_ratio")).any()
    ]
    return Plate(
        name="update-ratio",
        title="Size of the updates",
        caption="Norm of the optimizer's update over the norm of the weights, computed from the optimizer state: for "
        "the whole model over training, and for each layer (each module, if the layers do not form a single stack) at "
        f"the last measured step with a learning rate above zero (a schedule may end at zero). {SEEDS}",
        panels=panels,
        findings=notes if panels else [],
        missing=[*missing_rows(records, "gradients"), *(f"{r.label}: no update ratio was measured" for r in without)],
    )


def _last_update_panel(groups: Sequence[Group], *, by_layer: bool) -> Panel | None:
    """Return the panel of the last updates by layer, or by module if layers have no depth."""
    words, title = "||update|| / ||weights||", "last measured step with an update"
    steps = {group.label: step for group in groups if (step := _last_update(group)) is not None}
    moved = [group for group in groups if group.label in steps]
    if not by_layer:
        figure = named_figure([(group, module_updates(steps[group.label])) for group in moved], x=words, title=title)
        return Panel("modules", "Update over weights by module", figure) if figure else None
    axes = new_axes(x=LAYER, y=words, title=title)
    for group in moved:
        draw_depth(axes, group, _layer_update(steps[group.label]), label=group.label)
    return Panel("depth", "Update over weights against layer", finish(axes, log="y")) if axes.get_lines() else None


def _last_update(group: Group) -> float | None:
    """Return the last measured step at which the weights moved."""
    curve = band(group, _whole_update)
    moved = curve.x[np.isfinite(curve.mean) & (curve.mean > 0)]
    return float(moved[-1]) if len(moved) else None


def _by_layer(layers: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the layers and the root of the sum of squares in each; NaN if any of its values is not finite."""
    distinct = np.unique(layers[np.isfinite(layers)])
    return distinct, np.array([np.sqrt(squares[layers == layer].sum()) for layer in distinct])


def _output_scales(record: Record):
    rows = rows_where(record.gradients, norm_role=["attention.output_norm", "mlp.output_norm"])
    return rows.iloc[np.flatnonzero(np.isfinite(column(rows, "scale_mean")))]


def _draw_scales(axes: Axes, group: Group, step: float, branch: str) -> None:
    look = {"linestyle": ":", "markerfacecolor": "white"} if branch == "mlp" else {}
    label = f"{group.label}, {'MLP' if branch == 'mlp' else branch}"
    mean = draw_depth(axes, group, _scale_curve(step, branch, "scale_mean"), label=label, **look)
    low, high = (band(group, _scale_curve(step, branch, name)) for name in ("scale_min", "scale_max"))
    if len(mean.x):
        axes.fill_between(mean.x, low.low, high.high, color=group.look.color, alpha=0.15, linewidth=0)


def _scale_curve(step: float, branch: str, quantity: str) -> Curve:
    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_where(_output_scales(record), step=step, norm_role=f"{branch}.output_norm").sort_values("layer")
        return column(rows, "layer"), column(rows, quantity)

    return curve


def _update_squares(record: Record, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return layer, squared update and squared weights of every parameter whose update is known."""
    rows = rows_where(record.gradients, step=step)
    weights, ratio = column(rows, "parameter_norm"), column(rows, "update_ratio")
    known = np.isfinite(weights) & np.isfinite(ratio)
    return column(rows, "layer")[known], np.square(ratio * weights)[known], np.square(weights)[known]


def _layer_update(step: float) -> Curve:
    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        layers, updates, weights = _update_squares(record, step)
        distinct, update_norms = _by_layer(layers, updates)
        return distinct, update_norms / _by_layer(layers, weights)[1]

    return curve


def _whole_update(record: Record) -> tuple[np.ndarray, np.ndarray]:
    steps = np.unique(column(record.gradients, "step"))
    sums = [(updates.sum(), weights.sum()) for _, updates, weights in (_update_squares(record, step) for step in steps)]
    return steps, np.array([np.sqrt(update / weights) if weights > 0 else np.nan for update, weights in sums])
