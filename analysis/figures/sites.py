"""Activations beside the stream: what the modules give, and the arbitrary sites of other networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.depth import draw_depth, first_and_last, having, missing_rows
from analysis.figures.modules import Values, named_figure
from analysis.figures.training import SEEDS
from analysis.groups import Curve, Group, for_depth
from analysis.runs import Record, column, rows_where
from analysis.style import Panel, Plate, finish, new_axes, paper


@paper
def module_outputs(records: Sequence[Record]) -> Plate:
    """Draw the variance of what attention and MLP give, before and after the output norm, against the layer."""
    groups, notes = for_depth(records)
    panels = []
    for branch in ("attention", "mlp"):
        for moment in first_and_last(groups, "activations"):
            words = "attention" if branch == "attention" else "MLP"
            axes = new_axes(x="layer", y=f"variance of {words} output", title=moment.title)
            for group in having(groups, moment):
                step = moment.steps[group.label]
                draw_depth(axes, group, _site_curve(step, f"{branch}.output"), label=group.label)
                after = {"linestyle": ":", "markerfacecolor": "white"}
                label = f"{group.label}, normed"
                draw_depth(axes, group, _site_curve(step, f"{branch}.normed_output"), label=label, **after)
            if axes.get_lines():
                name = "-".join(filter(None, (branch, moment.name)))
                panels.append(Panel(name, f"Variance of {words} output, {moment.title}", finish(axes, log="y")))
    return Plate(
        name="module-outputs",
        title="Module outputs before and after the output norm",
        caption="Variance of what a sub-layer gives before it is added to the stream (filled), and after the output "
        f"norm where the placement has one (hollow, dotted). {SEEDS}",
        panels=panels,
        findings=notes if panels else [],
        missing=missing_rows(records, "activations") if panels else ["no run has sites of module outputs"],
    )


@paper
def sites(records: Sequence[Record]) -> Plate:
    """Draw variance and largest element of arbitrary sites, in the order in which the network reaches them."""
    groups, notes = for_depth(records)
    panels = []
    for quantity, words, file in (("variance", "variance", "variance"), ("max_abs", "largest |x|", "max")):
        for moment in first_and_last(groups, "activations"):
            lines = [(group, _site_values(moment.steps[group.label], quantity)) for group in having(groups, moment)]
            figure = named_figure(lines, x=words, title=moment.title) or _unnamed(lines, y=words, title=moment.title)
            if figure is not None:
                name = "-".join(filter(None, (file, moment.name)))
                panels.append(Panel(name, f"{words} by site, {moment.title}", figure))
    return Plate(
        name="sites",
        title="Activations by site",
        caption="Variance over all elements, and the largest absolute element, of every measured site, in the order in "
        f"which they stand in activations.jsonl. {SEEDS}",
        panels=panels,
        findings=notes if panels else [],
        missing=missing_rows(records, "activations"),
    )


def _unnamed(lines: Sequence[tuple[Group, Values]], *, y: str, title: str) -> Figure | None:
    """Draw so many sites that their names have no room: against their number."""
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
    """Return distinct names: with the layer before them only where the sites' own names repeat."""
    sites, layers = column(rows, "site"), column(rows, "layer")
    if len(set(sites)) == len(sites):
        return [str(site) for site in sites]
    return [
        f"{layer:.0f} {site}" if np.isfinite(layer) else str(site) for layer, site in zip(layers, sites, strict=True)
    ]


def _numbered(values: Values) -> Curve:
    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        found = list(values(record).values())
        return np.arange(len(found)), np.array(found, dtype=float)

    return curve
