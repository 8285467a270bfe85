"""Plots of what single layers contribute: the loss without a layer, and the angle between its input and output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.figures.depth import first_and_last, measured_at
from analysis.figures.lines import line_figure, over_depth, shown_text
from analysis.groups import Curve, for_depth
from analysis.runs import Record, absence, column, rows_where, setting
from analysis.style import LAYER, Panel, Plate, paper

_QUANTITIES = (
    ("loss", "increase of the validation loss", "Increase of the loss without the layer"),
    ("angle", "angular distance (units of pi)", "Angular distance between a layer's input and output"),
)


def layer_curve(step: float, quantity: str) -> Curve:
    """Return the curve over layers of a quantity at one step: "loss", the increase without the layer, or "angle"."""

    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_where(record.layers, step=step).sort_values("layer")
        if quantity == "loss":
            return column(rows, "layer"), column(rows, "loss_without") - column(rows, "loss")
        return column(rows, "layer"), column(rows, "angular_distance")

    return curve


def last_mean(record: Record, quantity: str) -> float | None:
    """Return the mean over a run's layers at its last measured step, or None if a value is missing."""
    steps = column(record.layers, "step")
    if not len(steps):
        return None
    values = layer_curve(float(steps.max()), quantity)(record)[1]
    return float(values.mean()) if np.isfinite(values).all() else None


def asks_for_layers(record: Record) -> bool:
    """Return whether a run measured its layers, or was configured to."""
    return not record.layers.empty or setting(record.config, "probes.layers_every") is not None


@paper
def layers(records: Sequence[Record]) -> Plate:
    """Draw both quantities against depth at the last measured step; runs that never asked for them are left out."""
    asked = [record for record in records if asks_for_layers(record)]
    groups, notes = for_depth([record for record in asked if not record.layers.empty])
    caption = (
        "At the last measured step. Increase of the loss: validation loss with the layer left out, less that with all "
        "layers, on the same validation windows; near zero, the layer is redundant. Angular distance: angle between a "
        "token's stream before and after the layer, in units of pi, averaged over tokens; 0: the same direction."
    )
    plate = Plate(
        name="layers",
        title="Contribution of single layers",
        caption=" ".join(filter(None, [caption, shown_text(groups), *notes])),
        missing=[absence(record, "layers") for record in asked if record.layers.empty],
    )
    points = first_and_last(groups, "layers")
    if not points:
        return plate
    point = points[-1]
    panels = []
    for name, words, title in _QUANTITIES:
        lines = [over_depth(group, layer_curve(point.steps[group.label], name)) for group in measured_at(groups, point)]
        means = np.concatenate([line.band.mean for line in lines])
        log = "y" if name == "loss" and bool((means[np.isfinite(means)] > 0).all()) else ""
        figure = line_figure(lines, x=LAYER, y=words, title=point.title, log=log)
        if figure is not None:
            panels.append(Panel(name, f"{title}, {point.title}", figure))
    return replace(plate, panels=panels)
