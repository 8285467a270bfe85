"""Page of an inspection: models, norm placement, and plots over depth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.figures import depth as depth_figures
from analysis.figures import gradients as gradient_figures
from analysis.figures import sites as site_figures
from analysis.inspect import angular, massive
from analysis.inspect.architecture import Layer, SubLayer
from analysis.inspect.inspected import Inspected
from analysis.inspect.massive import Largest
from analysis.inspect.measurement import Measurement
from analysis.page.contents import Section, Table
from analysis.report import tables
from analysis.runs import Record, column
from analysis.style import DEPTH, Panel, Plate, finish, new_axes, paper

_MOST_ROWS = 20  # of a table of large activations; all are in massive.jsonl


def sections(
    inspected: Sequence[Inspected], *, text: str, folders: Sequence[str], notes: Sequence[str]
) -> list[Section]:
    """Return the sections of the page."""
    overview = Section(
        title="Models",
        prose=[
            f"Text: {text}. The data behind every plot are in {', '.join(f'{folder}/' for folder in folders)} next to "
            "this page."
        ],
        notes=notes,
        tables=[_overview(inspected), _placement_table(inspected)],
    )
    sections = [overview]
    changing = [item for item in inspected if len(item.snapshots) > 1]
    if len(inspected) > 1 or not changing:
        sections += _depth_sections([item.latest() for item in inspected])
    for item in changing:
        sections += _depth_sections([item.over_steps()], heading=f"{item.subject.label} over steps: ")
    return [*sections, _angular_section(inspected), _massive(inspected)]


def _depth_sections(records: Sequence[Record], *, heading: str = "") -> list[Section]:
    """Return the figures that a report of runs has too."""
    fits, uniformity = tables.fits(records), tables.uniformity(records)
    activations = [depth_figures.variance, depth_figures.maxima, site_figures.module_outputs]
    gradients = [_gradient_over_depth, gradient_figures.norm_scales]
    prefix = re.sub(r"[^\w.+-]+", "-", heading).strip("-")
    return [
        Section(
            title=f"{heading}{title}",
            tables=[] if table is None else [table],
            plates=[_prefixed(draw(records), prefix) for draw in figures],
        )
        for title, table, figures in (
            ("Activations", fits, activations),
            ("Gradients and norm scales", uniformity, gradients),
        )
    ]


def _gradient_over_depth(records: Sequence[Record]) -> Plate:
    """Draw the gradient norms of the models that have them."""
    without = [record.label for record in records if not np.isfinite(column(record.gradients, "norm")).any()]
    measured = [record for record in records if record.label not in without]
    reasons = [
        f"{label}: gradients were not measured (--no-gradients, or weights were offloaded)." for label in without
    ]
    if measured:
        plate = gradient_figures.gradient_over_depth(measured)
    else:
        plate = Plate(name="gradient-depth", title="Gradient norm against depth", caption="")
    return replace(plate, missing=[*plate.missing, *reasons])


def _prefixed(plate: Plate, prefix: str) -> Plate:
    return replace(plate, name=f"{prefix}-{plate.name}") if prefix else plate


def _overview(inspected: Sequence[Inspected]) -> Table:
    header = ("model", "placement", "layers", "parameters", "dtype", "device", "windows x tokens", "loss (nats/token)",
              "bits per byte", "massive activations")  # fmt: skip
    rows = [
        (
            item.named(snapshot),
            snapshot.architecture.placement,
            len(snapshot.architecture.layers),
            snapshot.facts["parameters"],
            snapshot.facts["dtype"],
            snapshot.facts["device"],
            f"{snapshot.facts['windows']} x {snapshot.facts['sequence_length']}",
            snapshot.measurement.loss,
            snapshot.measurement.bits_per_byte,
            "yes" if any(element.is_massive for element in snapshot.measurement.largest) else "none",
        )
        for item in inspected
        for snapshot in item.snapshots
    ]
    return Table(title="Models", header=header, rows=rows, caption="Loss is the mean over all predicted tokens.")


def _placement_table(inspected: Sequence[Inspected]) -> Table:
    """Return the norms of every layer by module name; adjacent layers that agree share rows."""
    rows: list[tuple[str | None, ...]] = []
    for item in inspected:
        architecture = item.last.architecture
        for layers in _alike(architecture.layers):
            head = (item.subject.label, _span(layers), layers[0].placement)
            rows += [(*head, *branch) for branch in _branches(layers[0])]
        rows.append((item.subject.label, "after the last", None, None, architecture.final_norm or "no norm", None))
    return Table(
        title="Where the norms are",
        header=("model", "layers", "placement", "sub-layer", "its norms", "residual scale"),
        rows=rows,
        caption="Recognized from the data flow, not from module names.",
    )


def _alike(layers: Sequence[Layer]) -> list[list[Layer]]:
    runs: list[list[Layer]] = []
    for layer in layers:
        if runs and _branches(runs[-1][0]) == _branches(layer):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def _span(layers: Sequence[Layer]) -> str:
    first, last = layers[0].index, layers[-1].index
    return str(first) if first == last else f"{first} to {last}"


def _branches(layer: Layer) -> list[tuple[str | None, ...]]:
    """Return sub-layer, norms and scale for attention and MLP; the reason where the placement is unknown."""
    if layer.attention is None or layer.mlp is None:
        return [(None, layer.reason, None)]
    return [(branch.module, _norms_text(branch), f"{branch.scale:.4g}") for branch in (layer.attention, layer.mlp)]


def _norms_text(branch: SubLayer) -> str:
    roles = (
        ("before", branch.input_norm),
        ("on its output", branch.output_norm),
        ("on the stream", branch.stream_norm),
    )
    return ", ".join(f"{role}: {name}" for role, name in roles if name is not None) or "none"


def _angular_section(inspected: Sequence[Inspected]) -> Section:
    first_and_last = [
        (item, snapshot) for item in inspected for snapshot in (item.snapshots[:1] + item.snapshots[1:][-1:])
    ]
    largest = max(float(np.nanmax(snapshot.measurement.angles)) for _, snapshot in first_and_last)
    panels = [
        _heat_map(f"{number}", item.named(snapshot), snapshot.measurement, largest=largest)
        for number, (item, snapshot) in enumerate(first_and_last, start=1)
    ]
    caption = (
        "Angular distance (1/pi) arccos cos(x, y) between the residual streams before the first block (0) and after "
        "each block: 0 means the same direction, 0.5 orthogonal. Averaged over tokens, at most "
        f"{angular.TOKENS_PER_WINDOW} evenly spaced ones per window. All panels share one color scale."
    )
    plate = Plate(
        name="angular-distance",
        title="Angular distance between depths",
        caption=caption,
        panels=panels,
        findings=[_turning(item.named(snapshot), snapshot.measurement) for item, snapshot in first_and_last],
    )
    return Section(title="Directions", plates=[plate])


def _turning(label: str, measurement: Measurement) -> str:
    """Return a sentence on the blocks that turn the stream least and most."""
    steps = np.diagonal(np.asarray(measurement.angles), offset=1)
    least, most = int(np.nanargmin(steps)), int(np.nanargmax(steps))
    return (
        f"{label}: block {most} turns the stream most ({steps[most]:.3f}), block {least} least ({steps[least]:.3f}); "
        f"from first to last {measurement.angles[0][-1]:.3f}."
    )


@paper
def _heat_map(name: str, label: str, measurement: Measurement, *, largest: float) -> Panel:
    axes = new_axes(x=DEPTH, y=DEPTH, title=label)
    image = axes.imshow(np.asarray(measurement.angles), origin="lower", cmap="cividis", vmin=0, vmax=largest)
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure = finish(axes, legend=False)
    figure.colorbar(image, ax=axes, label="angular distance")
    alt = f"Heat map of the angular distance between the residual streams of {label} at all pairs of depths."
    return Panel(name, alt, figure)


def _massive(inspected: Sequence[Inspected]) -> Section:
    prose = (
        f"An activation in the residual stream is massive if its magnitude exceeds both {massive.MAGNITUDE:g} and "
        f"{massive.RATIO:g} times the median magnitude at its depth and in its window (Sun et al. 2024). Depth 0 is "
        "the input of the first block, l + 0.5 is after the attention of layer l, and l + 1 after its MLP."
    )
    return Section(title="Massive activations", prose=[prose], tables=[_massive_table(item) for item in inspected])


def _massive_table(item: Inspected) -> Table:
    """Show the largest activation of every depth, or of those depths where it is largest."""
    snapshot = item.last
    tops: dict[float, Largest] = {}
    for element in snapshot.measurement.largest:
        tops.setdefault(element.depth, element)
    chosen = sorted(tops.values(), key=lambda element: -abs(element.value))[:_MOST_ROWS]
    rows = [
        (
            f"{element.depth:g}",
            element.value,
            element.ratio_to_median,
            "yes" if element.is_massive else "no",
            str(element.dimension),
            str(element.window),
            str(element.position),
            repr(snapshot.token(element)),
        )
        for element in sorted(chosen, key=lambda element: element.depth)
    ]
    count = sum(element.is_massive for element in snapshot.measurement.largest)
    rest = f" The {len(rows)} largest of {len(tops)} depths are shown." if len(tops) > len(rows) else ""
    return Table(
        title=f"Largest activation at each depth: {item.named(snapshot)}",
        header=("depth", "value", "times the median", "massive", "dimension", "window", "position", "token"),
        rows=rows,
        caption=f"Of the {massive.LARGEST_PER_DEPTH} largest at each depth, {count} are massive.{rest}",
    )
