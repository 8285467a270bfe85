"""Activations beside the stream: what the modules give, and the arbitrary sites of other networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.depth_figures import draw_depth, first_and_last, having, missing_rows
from analysis.groups import Curve, for_depth
from analysis.runs import Record, column, rows_where
from analysis.style import Panel, Plate, finish, new_axes, paper
from analysis.training_figures import SEEDS


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
            axes = new_axes(x="site, in order", y=words, title=moment.title)
            names: list[str] = []
            for group in having(groups, moment):
                names = max(names, _site_names(group.records[0], moment.steps[group.label]), key=len)
                draw_depth(axes, group, _ordered_curve(moment.steps[group.label], quantity), label=group.label)
            if not axes.get_lines():
                continue
            if len(names) <= 12:
                axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
            name = "-".join(filter(None, (file, moment.name)))
            panels.append(Panel(name, f"{words} by site, {moment.title}", finish(axes, log="y")))
    return Plate(
        name="sites",
        title="Activations by site",
        caption="Variance over all elements, and the largest absolute element, of every measured site, in the order in "
        f"which they stand in activations.jsonl. {SEEDS}",
        panels=panels,
        findings=notes if panels else [],
        missing=missing_rows(records, "activations"),
    )


def _site_curve(step: float, site: str) -> Curve:
    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        rows = rows_where(record.activations, step=step, site=site).sort_values("layer")
        return column(rows, "layer"), column(rows, "variance")

    return curve


def _ordered_curve(step: float, quantity: str) -> Curve:
    def curve(record: Record) -> tuple[np.ndarray, np.ndarray]:
        values = column(rows_where(record.activations, step=step), quantity)
        return np.arange(len(values)), values

    return curve


def _site_names(record: Record, step: float) -> list[str]:
    rows = rows_where(record.activations, step=step)
    pairs = zip(column(rows, "layer"), column(rows, "site"), strict=True)
    return [f"{layer:.0f} {site}" if np.isfinite(layer) else site for layer, site in pairs]
