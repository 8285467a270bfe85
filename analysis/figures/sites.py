"""Plots of activations outside the stream: outputs of attention and MLP, and the sites of other networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.figures.depth import first_and_last, measured_at, missing_rows
from analysis.figures.lines import Line, line_figure, over_depth, shown_text
from analysis.figures.modules import Values, named_figure, numbered_figure
from analysis.groups import MOST_LINES, Curve, Group, for_depth
from analysis.runs import Record, column, rows_where
from analysis.style import LAYER, Panel, Plate, paper


@paper
def module_outputs(records: Sequence[Record]) -> Plate:
    """Draw the variance of the outputs of attention and MLP over layers, before and after the output norm."""
    groups, notes = for_depth(records)
    panels, is_normed = [], False
    for branch, words in (("attention", "attention"), ("mlp", "MLP")):
        for point in first_and_last(groups, "activations"):
            lines = [
                line
                for group in measured_at(groups, point)
                for line in _output_lines(group, point.steps[group.label], branch)
            ]
            figure = line_figure(lines, x=LAYER, y=f"variance of {words} output", title=point.title, log="y")
            if figure is not None:
                is_normed |= any(line.quantity == "normed" and line.is_finite for line in lines)
                name = "-".join(filter(None, (branch, point.name)))
                panels.append(Panel(name, f"Variance of {words} output, {point.title}", figure))
    normed = (
        "Filled: before the output norm; hollow and dotted: after it, of placements that have one." if is_normed else ""
    )
    sentences = ["Variance of a sub-layer's output before it is added to the stream.", normed, shown_text(groups)]
    return Plate(
        name="module-outputs",
        title="Module outputs before and after the output norm" if is_normed else "Module outputs",
        caption=" ".join(filter(None, [*sentences, *notes])),
        panels=panels,
        missing=missing_rows(records, "activations") if panels else ["no run has module-output sites"],
    )


def _output_lines(group: Group, step: float, branch: str) -> list[Line]:
    """Return a sub-layer's output before the output norm, and hollow after it."""
    after = {"linestyle": ":", "markerfacecolor": "white"}
    label = f"{group.label}, normed"
    normed = over_depth(group, _site_curve(step, f"{branch}.normed_output"), label=label, quantity="normed", **after)
    return [over_depth(group, _site_curve(step, f"{branch}.output"), quantity="output"), normed]


@paper
def sites(records: Sequence[Record]) -> Plate:
    """Draw the variance and the largest element of arbitrary sites, in the order of the forward pass."""
    groups, notes = for_depth(records, most=MOST_LINES)
    panels = []
    for quantity, words, file in (("variance", "variance", "variance"), ("max_abs", "largest |x|", "max")):
        for point in first_and_last(groups, "activations"):
            lines = [(group, _site_values(point.steps[group.label], quantity)) for group in measured_at(groups, point)]
            figure = named_figure(lines, x=words, title=point.title) or numbered_figure(
                lines, x="site, in order", y=words, title=point.title
            )
            if figure is not None:
                name = "-".join(filter(None, (file, point.name)))
                panels.append(Panel(name, f"{words} by site, {point.title}", figure))
    return Plate(
        name="sites",
        title="Activations by site",
        caption=" ".join([
            "Variance over all elements, and largest absolute element, of every measured site, in the order of "
            "activations.jsonl.",
            shown_text(groups),
            *notes,
        ]),
        panels=panels,
        missing=missing_rows(records, "activations"),
    )  # fmt: skip


def _site_curve(step: float, site: str) -> Curve:
    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_where(record.activations, step=step, site=site).sort_values("layer")
        return column(rows, "layer"), column(rows, "variance")

    return curve


def _site_values(step: float, quantity: str) -> Values:
    def values(record: Record) -> dict[str, float]:
        rows = rows_where(record.activations, step=step)
        return dict(zip(_site_names(rows), column(rows, quantity), strict=True))

    return values


def _site_names(rows: pd.DataFrame) -> list[str]:
    """Return distinct names: the sites' own, preceded by the layer if any of them repeats."""
    sites, layers = column(rows, "site"), column(rows, "layer")
    if len(set(sites)) == len(sites):
        return [str(site) for site in sites]
    return [
        f"{layer:.0f} {site}" if np.isfinite(layer) else str(site) for layer, site in zip(layers, sites, strict=True)
    ]
