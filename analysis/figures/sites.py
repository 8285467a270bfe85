"""Plots of activations outside the stream: outputs of attention and MLP, and the sites of other networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.depth import draw_depth, first_and_last, measured_at, missing_rows
from analysis.figures.modules import Values, named_figure
from analysis.figures.training import SEEDS
from analysis.groups import Curve, Group, for_depth
from analysis.runs import Record, column, rows_where
from analysis.style import Panel, Plate, finish, new_axes, paper


@paper
def module_outputs(records: Sequence[Record]) -> Plate:
    """Draw the variance of the outputs of attention and MLP over layers, before and after the output norm."""
    groups, notes = for_depth(records)
    panels = []
    for branch in ("attention", "mlp"):
        for point in first_and_last(groups, "activations"):
            words = "attention" if branch == "attention" else "MLP"
            axes = new_axes(x="layer", y=f"variance of {words} output", title=point.title)
            for group in measured_at(groups, point):
                step = point.steps[group.label]
                draw_depth(axes, group, _site_curve(step, f"{branch}.output"), label=group.label)
                after = {"linestyle": ":", "markerfacecolor": "white"}
                label = f"{group.label}, normed"
                draw_depth(axes, group, _site_curve(step, f"{branch}.normed_output"), label=label, **after)
            if axes.get_lines():
                name = "-".join(filter(None, (branch, point.name)))
                panels.append(Panel(name, f"Variance of {words} output, {point.title}", finish(axes, log="y")))
    return Plate(
        name="module-outputs",
        title="Module outputs before and after the output norm",
        caption="Variance of a sub-layer's output before it is added to the stream (filled), and after the output norm "
        f"if the placement has one (hollow, dotted). {SEEDS}",
        panels=panels,
        findings=notes if panels else [],
        missing=missing_rows(records, "activations") if panels else ["no run has module-output sites"],
    )


@paper
def sites(records: Sequence[Record]) -> Plate:
    """Draw the variance and the largest element of arbitrary sites, in the order of the forward pass."""
    groups, notes = for_depth(records)
    panels = []
    for quantity, words, file in (("variance", "variance", "variance"), ("max_abs", "largest |x|", "max")):
        for point in first_and_last(groups, "activations"):
            lines = [(group, _site_values(point.steps[group.label], quantity)) for group in measured_at(groups, point)]
            figure = named_figure(lines, x=words, title=point.title) or _unnamed(lines, y=words, title=point.title)
            if figure is not None:
                name = "-".join(filter(None, (file, point.name)))
                panels.append(Panel(name, f"{words} by site, {point.title}", figure))
    return Plate(
        name="sites",
        title="Activations by site",
        caption="Variance over all elements, and largest absolute element, of every measured site, in the order of "
        f"activations.jsonl. {SEEDS}",
        panels=panels,
        findings=notes if panels else [],
        missing=missing_rows(records, "activations"),
    )


def _unnamed(lines: Sequence[tuple[Group, Values]], *, y: str, title: str) -> Figure | None:
    """Draw sites by number, when there are too many to fit their names."""
    axes = new_axes(x="site, in order", y=y, title=title)
    for group, values in lines:
        draw_depth(axes, group, _numbered(values), label=group.label)
    return finish(axes, log="y") if axes.get_lines() else None


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


def _numbered(values: Values) -> Curve:
    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        heights = list(values(record).values())
        return np.arange(len(heights)), np.array(heights, dtype=float)

    return curve
