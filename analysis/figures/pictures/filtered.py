"""Plots of validation images side by side: guidance, input, truth, output, errors and offsets on shared scales.

Shapes: H, W height and width, C channels (1 or 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.figures.pictures.picture import picture, range_of
from analysis.groups import best_final, final_rank, group_records
from analysis.images.filtered import FilteredImage
from analysis.images.saved import RunImages
from analysis.style import Panel, Plate, paper

_MOST_RUNS = 4  # side by side
_MOST_IMAGES = 3
_MOST_LETTERS = 52  # of a title that fits a panel
_SHARE_ON_SCALE = 0.99  # share of the errors that the color scale covers

Kind = Literal["input", "truth", "output", "error-input", "error-output", "offsets"]
_SHARED: tuple[Kind, ...] = ("input", "truth", "error-input")  # drawn once if they are the same for all runs
_KINDS: tuple[Kind, ...] = (*_SHARED, "output", "error-output", "offsets")


class NamedImage(Protocol):
    """What images of all tasks have."""

    @property
    def name(self) -> str:
        """Name of the image, the same in all runs."""
        ...

    @property
    def step(self) -> int:
        """Step of the evaluation."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...


Image = TypeVar("Image", bound=NamedImage)


@dataclass(frozen=True, kw_only=True)
class ImageOfRuns(Generic[Image]):
    """One image as several runs saved it; `by_run` maps their labels, in the order of the runs."""

    name: str
    by_run: dict[str, Image]

    @property
    def first(self) -> Image:
        """The first run's image; all runs share its guidance."""
        return next(iter(self.by_run.values()))

    def title(self, words: str, label: str) -> str:
        """Return a panel's title, preceded by the run's label if there are several runs."""
        return f"{short(label)}\n{words}" if len(self.by_run) > 1 else words

    @property
    def steps(self) -> str:
        """The step of the evaluation, as text."""
        steps = sorted({one.step for one in self.by_run.values()})
        return f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}"


def choose(candidates: Sequence[RunImages]) -> tuple[list[ImageOfRuns[FilteredImage]], list[str]]:
    """Return the filtered images to draw, and notes on the runs and images left out."""
    return choose_images(candidates, {id(run.record): run.images for run in candidates})


def choose_images(
    candidates: Sequence[RunImages], saved: Mapping[int, Sequence[Image]]
) -> tuple[list[ImageOfRuns[Image]], list[str]]:
    """Return the images to draw, and notes on the runs and images left out.

    Of runs that differ only in seed, the first is drawn; of more than four such groups, those with the best final value
    of the task's main metric. Images are matched by name and size.

    Args:
        candidates: The runs.
        saved: Images of each run, by the id of its record.
    """
    with_images = {id(run.record): run for run in candidates if saved[id(run.record)]}
    groups = group_records([run.record for run in with_images.values()])
    best = sorted(groups, key=final_rank)[:_MOST_RUNS]
    runs = [with_images[id(group.records[0])] for group in groups if group in best]
    together: dict[tuple[str, tuple[int, int]], dict[str, Image]] = {}
    for run in runs:
        for image in saved[id(run.record)]:
            together.setdefault((image.name, image.size), {})[run.record.label] = image
    images = [ImageOfRuns(name=name, by_run=by_run) for (name, _), by_run in together.items()]
    images.sort(key=lambda image: -len(image.by_run))  # those that all runs have come first
    notes = []
    if left := [run.record.label for run in with_images.values() if run not in runs]:
        why = "of runs that differ only in seed, the first is shown"
        if len(best) < len(groups):
            why += f", and of {len(groups)} groups, the {_MOST_RUNS} with the {best_final(groups[0].records)}"
        notes.append(f"Images not shown for {', '.join(left)} ({why}).")
    if more := [image.name for image in images[_MOST_IMAGES:]]:
        notes.append(f"Saved by the runs but not shown: {', '.join(more)}.")
    return images[:_MOST_IMAGES], notes


@paper
def pictures(image: ImageOfRuns[FilteredImage], index: int) -> Plate:
    """Draw one image: inputs, outputs and errors.

    Args:
        image: The image, as filtered by several runs.
        index: Index of the image on the page, for the file names.
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


def value_scale(image: ImageOfRuns[FilteredImage]) -> Normalize:
    """Return the scale of input, output and truth: the range of the truth's valid pixels."""
    return range_of([one.truth[one.valid] for one in image.by_run.values()])


def number(value: float, unit: str = "") -> str:
    """Return a value with three significant digits and its unit."""
    return f"{value:.3g} {unit}".rstrip() if np.isfinite(value) else "not finite"


def slug(name: str) -> str:
    """Return a name that is safe in file names."""
    return re.sub(r"[^\w+-]+", "-", name, flags=re.ASCII).strip("-")[:60] or "image"


def short(text: str) -> str:
    """Return a text that fits a panel: of a long one only the end, where names of runs differ."""
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


def _scale_of(image: ImageOfRuns[FilteredImage], kind: Kind) -> Normalize:
    """Return the scale that all runs' panels of a kind share; both kinds of error have the same."""
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
        return picture(values, title=title, scale=scale, colors="cividis", bar="mean offset (px)")
    if kind in ("error-input", "error-output"):
        bar = "absolute error" + (f" ({image.unit})" if image.unit else "")
        return picture(values, title=title, scale=scale, colors="magma", bar=bar, open_end=True)
    if values.shape[2] == 3:
        return picture(values, title=title)
    return picture(values[:, :, 0], title=title, scale=scale, bar="value")


def _guidance(image: FilteredImage) -> Figure:
    """Draw the guidance, marking the pixels whose kernels are plotted below."""
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
    color = ", averaged over the color channels" if image.truth.shape[2] == 3 else ""
    border = f", without {image.border} pixels along its edges" if image.border else ""
    return (
        f"Panels of the same kind share a color scale. Error: absolute difference from the truth{unit}{color}; the "
        f"scale ends at the 99th percentile. RMSE: over the valid pixels of this image{border}; the "
        "validation metrics are means over images. Gray: unknown truth, or a non-finite value. Offsets: mean length "
        "over a pixel's samples. Squares on the guidance: the pixels whose kernels are plotted below."
    )
