"""Plots of training metrics besides the loss, with their values on validation images where these exist."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis.figures.lines import Line, is_wide, line_figure, shown_text
from analysis.figures.loss import lines_of, smoothing_text
from analysis.figures.training import axis_label
from analysis.groups import axis_of, with_arms
from analysis.runs import Record, column
from analysis.style import Panel, Plate, paper

# Metrics that tasks log at training steps, and what each is in a sentence.
WORDS = {
    "box_accuracy": "Box accuracy: share of the boxes whose class is named rightly, by the mean of their sub-regions.",
    "background_accuracy": "Background accuracy: share of the background queries that are named background.",
    "agreeing_loss": "Agreeing loss: mean cross-entropy over the pixels on which both pseudo labels agree.",
    "disagreeing_loss": "Disagreeing loss: that over the other pixels, weighted by the network's confidence in the "
    "label of the CRF.",
    "disagreement": "Disagreement: share of the pixels on which the two pseudo labels disagree.",
}


def in_training(records: Sequence[Record]) -> list[str]:
    """Return the names of the training metrics besides the loss that some run has."""
    return [
        name
        for name in WORDS
        if any(name in record.metrics and np.isfinite(column(record.training, name)).any() for record in records)
    ]


def _from_zero(axes: Axes, _: Sequence[Line]) -> None:
    """Start at zero: what is constant but for rounding would otherwise fill the panel."""
    axes.set_ylim(bottom=0)


@paper
def training_metrics(records: Sequence[Record]) -> Plate:
    """Draw each training metric besides the loss in a panel."""
    axis, names = axis_of(records), in_training(records)
    groups = with_arms(records)
    panels, shown, has_validation = [], {}, False
    for name in names:
        having = [group for group in groups if all(name in record.metrics for record in group.records)]
        lines = [line for group in having for line in lines_of(group, axis, name)]
        words = name.replace("_", " ")
        figure = line_figure(
            lines,
            x=axis_label(axis),
            y=words,
            log="y" if "loss" in name and is_wide([line.band.mean for line in lines]) else "",
            counts="x",
            decorate=_from_zero if name == "disagreement" else None,
        )
        if figure is not None:
            shown |= {line.group.label: line.group for line in lines if line.is_finite}
            has_validation |= any(line.quantity.startswith("validation") and line.is_finite for line in lines)
            panels.append(Panel(name.replace("_", "-"), f"{words.capitalize()} against {axis}", figure))
    caption = [f"Against {axis}.", *(WORDS[name] for name in names)]
    caption.append(smoothing_text(list(shown.values()), "values"))
    caption += ["Markers: the same on validation images."] * has_validation
    return Plate(
        name="training-metrics",
        title="Training metrics",
        caption=" ".join(filter(None, [*caption, shown_text(list(shown.values()))])),
        panels=panels,
    )
