"""Plots of gradients, norm scales and updates against depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from analysis.figures.depth import first_and_last, measured_at, measured_steps, missing_rows
from analysis.figures.lines import Line, line_figure, over_depth, over_training, shown_text
from analysis.figures.modules import is_one_stack, module_updates, named_figure
from analysis.figures.training import axis_label
from analysis.fits import Uniformity, uniformity
from analysis.groups import MOST_LINES, Band, Curve, Group, axis_of, band, for_depth, group_records
from analysis.runs import Record, column, rows_where
from analysis.style import LAYER, Panel, Plate, paper

_UPDATE, _LAST_UPDATE = "||update|| / ||weights||", "last measured step with an update"


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
        lines = [_with_uniformity(group, point.steps[group.label]) for group in measured_at(groups, point)]
        figure = line_figure(lines, x=LAYER, y="gradient norm of the layer", title=point.title, log="y")
        if figure is not None:
            panels.append(Panel(point.name, f"Gradient norm against layer, {point.title}", figure))
    sentences = [
        "L2 norm of the gradient over all parameters of a layer, after reduction over ranks and before clipping.",
        "max/min: largest over smallest layer, 1 if all layers are equal; CV: standard deviation over mean of the "
        "layers, 0 if all layers are equal." if len(groups) <= MOST_LINES else "",
        shown_text(groups),
        *notes,
    ]  # fmt: skip
    return Plate(
        name="gradient-depth",
        title="Gradient norm against depth",
        caption=" ".join(filter(None, sentences)),
        panels=panels,
        missing=missing_rows(records, "gradients"),
    )


def _with_uniformity(group: Group, step: float) -> Line:
    line = over_depth(group, layer_norms(step))
    spread = uniformity(line.band.mean)
    words = f": max/min {spread.max_over_min:.3g}, CV {spread.coefficient_of_variation:.2g}" if spread else ""
    return replace(line, label=group.label + words)


@paper
def norm_scales(records: Sequence[Record]) -> Plate:
    """Draw the output norms' scales against depth: mean and range over the channels."""
    groups, notes = for_depth(records)
    scaled = [group for group in groups if any(not _output_scales(record).empty for record in group.records)]
    panels = []
    for point in first_and_last(scaled, "gradients"):
        lines = [
            _scale_line(group, point.steps[group.label], branch)
            for group in measured_at(scaled, point)
            for branch in ("attention", "mlp")
        ]
        figure = line_figure(lines, x=LAYER, y="scale of the output norm", title=point.title)
        if figure is not None:
            panels.append(Panel(point.name, f"Output-norm scales against layer, {point.title}", figure))
    without = [group for group in groups if group not in scaled and not group.records[0].gradients.empty]
    return Plate(
        name="norm-scales",
        title="Scales of the output norms",
        caption=" ".join([
            "Scale of each output norm: mean over channels, with a band from the smallest to the largest channel (of "
            "all seeds). Filled: after attention; hollow: after the MLP.",
            f"Shown: {'; '.join(group.label for group in scaled)}.",
            *notes,
        ]),
        panels=panels,
        missing=[
            *missing_rows(records, "gradients"),
            *(f"{group.label}: has no output-norm scales" for group in without),
        ],
    )  # fmt: skip


@paper
def update_ratios(records: Sequence[Record]) -> Plate:
    """Draw the size of the updates relative to the weights, over training and over layers."""
    by_layer = is_one_stack(records)
    groups, notes = for_depth(records)
    axis = axis_of(records)
    panels = []
    if any(len(measured_steps(group, "gradients")) > 1 for group in groups):
        lines = [
            over_training(group, _whole_update, axis=axis, marker=group.look.marker, markersize=3) for group in groups
        ]
        figure = line_figure(lines, x=axis_label(axis), y=_UPDATE, log="y", counts="x")
        if figure is not None:
            panels.append(Panel("training", f"Update over weights against {axis}", figure))
    last = _last_update_panel(groups) if by_layer else _last_update_by_module(records)
    panels += [] if last is None else [last]
    without = [
        r for r in records if not r.gradients.empty and not np.isfinite(column(r.gradients, "update_ratio")).any()
    ]
    return Plate(
        name="update-ratio",
        title="Size of the updates",
        caption=" ".join(filter(None, [_update_caption(panels, axis), shown_text(groups), *notes])),
        panels=panels,
        missing=[*missing_rows(records, "gradients"), *(f"{r.label}: no update ratio was measured" for r in without)],
    )


def _update_caption(panels: Sequence[Panel], axis: str) -> str:
    places = {"training": f"of the whole model against {axis}", "depth": "of each layer", "modules": "of each module"}
    words = [places[panel.name] for panel in panels]
    last = (
        " at the last measured step with a learning rate above zero"
        if panels[-1:] and panels[-1].name != "training"
        else ""
    )
    return (
        "Norm of the optimizer's update over the norm of the weights, computed from the optimizer state: "
        f"{', and '.join(words)}{last}."
    )


def _last_update_panel(groups: Sequence[Group]) -> Panel | None:
    """Return the panel of the last updates by layer."""
    lines = [over_depth(group, _layer_update(step)) for group in groups if (step := _last_update(group)) is not None]
    figure = line_figure(lines, x=LAYER, y=_UPDATE, title=_LAST_UPDATE, log="y")
    return Panel("depth", "Update over weights against layer", figure) if figure else None


def _last_update_by_module(records: Sequence[Record]) -> Panel | None:
    """Return the panel of the last updates by module, for layers without depth."""
    groups, _ = for_depth(records, most=MOST_LINES)
    lines = [(group, module_updates(step)) for group in groups if (step := _last_update(group)) is not None]
    figure = named_figure(lines, x=_UPDATE, title=_LAST_UPDATE)
    return Panel("modules", "Update over weights by module", figure) if figure else None


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


def _scale_line(group: Group, step: float, branch: str) -> Line:
    """Return the mean over a norm's channels, with a band from the smallest channel of any run to the largest."""
    hollow = {"linestyle": ":", "markerfacecolor": "white"} if branch == "mlp" else {}
    words = "MLP" if branch == "mlp" else branch
    line = over_depth(
        group, _scale_curve(step, branch, "scale_mean"), label=f"{group.label}, {words}", quantity=words, **hollow
    )
    low, high = (band(group, _scale_curve(step, branch, name)) for name in ("scale_min", "scale_max"))
    return replace(line, band=Band(line.band.x, line.band.mean, low.low, high.high), has_band=True)


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
