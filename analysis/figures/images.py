"""Validation images side by side: guidance, input, truth, output, errors and offsets, on the same scales.

Shapes: H, W height and width, C channels (1 or 3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.figures.picture import picture, range_of
from analysis.groups import final_loss, group_records
from analysis.images import FilteredImage, RunImages
from analysis.style import Panel, Plate, paper

_MOST_RUNS = 4  # beside each other
_MOST_IMAGES = 3
_MOST_LETTERS = 52  # of a title in a panel's width
_SHARE_ON_SCALE = 0.99  # of the errors

Kind = Literal["input", "truth", "output", "error-input", "error-output", "offsets"]
_SHARED: tuple[Kind, ...] = ("input", "truth", "error-input")  # shown once where they are the same for all runs
_KINDS: tuple[Kind, ...] = (*_SHARED, "output", "error-output", "offsets")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image as several runs filtered it; `by_run` has their labels in the order of the runs."""

    name: str
    by_run: dict[str, FilteredImage]

    @property
    def first(self) -> FilteredImage:
        """That of the first run: its guidance is everyone's."""
        return next(iter(self.by_run.values()))

    def title(self, words: str, label: str) -> str:
        """Return a panel's title, with the run's label above where there are several runs."""
        return f"{short(label)}\n{words}" if len(self.by_run) > 1 else words

    @property
    def steps(self) -> str:
        """Words for the step of the evaluation."""
        steps = sorted({one.step for one in self.by_run.values()})
        return f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}"


def choose(found: Sequence[RunImages]) -> tuple[list[Shown], list[str]]:
    """Return the images to be shown, and words about the runs and images that are left out.

    Of runs that differ only in seed the first is shown; of more than four such groups, those with the lowest final
    validation loss. Images are matched by name and size.
    """
    have = {id(run.record): run for run in found if run.images}
    groups = group_records([run.record for run in have.values()])
    kept = sorted(groups, key=final_loss)[:_MOST_RUNS]
    runs = [have[id(group.records[0])] for group in groups if group in kept]
    together: dict[tuple[str, tuple[int, int]], dict[str, FilteredImage]] = {}
    for run in runs:
        for image in run.images:
            together.setdefault((image.name, image.size), {})[run.record.label] = image
    shown = [Shown(name=name, by_run=by_run) for (name, _), by_run in together.items()]
    shown.sort(key=lambda image: -len(image.by_run))  # first what all runs have
    notes = []
    if left := [run.record.label for run in have.values() if run not in runs]:
        why = "of runs that differ only in seed the first is shown"
        if len(kept) < len(groups):
            why += f", and of {len(groups)} lines those {_MOST_RUNS} with the lowest final validation loss"
        notes.append(f"Without pictures: {', '.join(left)} ({why}).")
    if more := [image.name for image in shown[_MOST_IMAGES:]]:
        notes.append(f"Kept by the runs but not shown: {', '.join(more)}.")
    return shown[:_MOST_IMAGES], notes


@paper
def pictures(image: Shown, index: int) -> Plate:
    """Draw one image: what was given, what was made of it, and how far off it is.

    Args:
        image: As several runs filtered it.
        index: Of the image on the page, for the files' names.
    """
    panels = [Panel("guidance", f"Guidance of {image.name}", _guidance(image.first))]
    for kind in _KINDS:
        scale, seen = _scale_of(image, kind), []
        for i, (label, one) in enumerate(image.by_run.items()):
            values = _values(one, kind)
            if kind in _SHARED and any(np.array_equal(values, earlier, equal_nan=True) for earlier in seen):
                continue
            words = _title(one, kind)
            title = words if kind in _SHARED and not seen else image.title(words, label)
            seen.append(values)
            name = kind if len(image.by_run) == 1 else f"{kind}-{i + 1}"
            panels.append(Panel(name, f"{title} of {image.name}".replace("\n", ": "), _draw(one, kind, scale, title)))
    return Plate(
        name=f"image-{index + 1}-{slug(image.name)}",
        title=f"Validation image {image.name}, {image.steps}",
        caption=_caption(image.first),
        panels=panels,
    )


def value_scale(image: Shown) -> Normalize:
    """Return the scale of input, output and truth: the range of what is known of the truth."""
    return range_of([one.truth[one.valid] for one in image.by_run.values()])


def number(value: float, unit: str = "") -> str:
    """Return three digits and the unit."""
    return f"{value:.3g} {unit}".rstrip() if np.isfinite(value) else "not finite"


def slug(name: str) -> str:
    """Return a name that files can have."""
    return re.sub(r"[^\w+-]+", "-", name, flags=re.ASCII).strip("-")[:60] or "image"


def short(text: str) -> str:
    """Return a text that fits a panel's width: of a long one its end, where names of runs differ."""
    return text if len(text) <= _MOST_LETTERS else f"...{text[-_MOST_LETTERS + 3 :]}"


def _values(image: FilteredImage, kind: Kind) -> np.ndarray:
    match kind:
        case "truth":
            return np.where(image.valid[:, :, None], image.truth, np.nan)
        case "error-input":
            return image.error("input")
        case "error-output":
            return image.error("output")
        case "offsets":
            return image.offset_length
        case _:
            return getattr(image, kind)


def _scale_of(image: Shown, kind: Kind) -> Normalize:
    """Return the scale that a kind of panel has for all runs; both errors have the same."""
    if kind in ("input", "output", "truth"):
        return value_scale(image)
    if kind == "offsets":
        return range_of([one.offset_length for one in image.by_run.values()], low=0.0)
    errors = [one.error(of) for one in image.by_run.values() for of in ("input", "output")]
    return range_of(errors, low=0.0, quantile=_SHARE_ON_SCALE)


def _title(image: FilteredImage, kind: Kind) -> str:
    if kind == "offsets":
        finite = image.offset_length[np.isfinite(image.offset_length)]
        return f"offsets: mean {number(float(finite.mean()) if len(finite) else float('nan'), 'px')}"
    if kind in ("error-input", "error-output"):
        of = "input" if kind == "error-input" else "output"
        return f"error of the {of}: RMSE {number(image.rmse(of), image.unit)}"
    return kind


def _draw(image: FilteredImage, kind: Kind, scale: Normalize, title: str) -> Figure:
    values = _values(image, kind)
    if kind == "offsets":
        return picture(values, title=title, scale=scale, colours="cividis", bar="mean offset (px)")
    if kind in ("error-input", "error-output"):
        bar = "absolute error" + (f" ({image.unit})" if image.unit else "")
        return picture(values, title=title, scale=scale, colours="magma", bar=bar, open_end=True)
    if values.shape[2] == 3:
        return picture(values, title=title)
    return picture(values[:, :, 0], title=title, scale=scale, bar="value")


def _guidance(image: FilteredImage) -> Figure:
    """Draw the guidance with the pixels whose kernels are shown below."""
    figure = picture(image.guidance, title="guidance")
    axes = figure.axes[0]
    for i, (row, column) in enumerate(image.pixel.tolist()):
        axes.plot([column], [row], "s", markersize=9, markerfacecolor="none", markeredgecolor="black", gid="rim")
        axes.plot([column], [row], "s", markersize=7, markerfacecolor="none", markeredgecolor="white", gid="pixel")
        axes.annotate(
            str(i + 1), (column, row), xytext=(6, 5), textcoords="offset points", color="white", fontsize=7,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "black", "edgecolor": "none", "alpha": 0.7},
        )  # fmt: skip
    return figure


def _caption(image: FilteredImage) -> str:
    unit = f" in {image.unit}" if image.unit else ""
    colour = ", the mean over the colours" if image.truth.shape[2] == 3 else ""
    border = f", {image.border} pixels along its edges left out" if image.border else ""
    return (
        f"Panels of a kind have the same colour scale. Error: absolute difference from the truth{unit}{colour}; the "
        f"scale ends at what one pixel in a hundred exceeds. RMSE: over the valid pixels of this image{border}; the "
        "validation figures are means over images. Grey: no truth is known there, or a value is not finite. Offsets: "
        "mean length over a pixel's samples. Squares on the guidance: the pixels whose kernels are shown below."
    )
