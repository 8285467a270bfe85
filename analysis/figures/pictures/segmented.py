"""Rows of pictures of box-supervised segmentation: photo with boxes, maps, pseudo labels, truth and prediction.

Shapes: H, W height and width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.figures.pictures.class_colors import color_legend, colored, cut, ink, share
from analysis.figures.pictures.filtered import ImageOfRuns, choose_images, slug
from analysis.figures.pictures.picture import figure_of, picture, picture_axes, range_of, show, show_colors
from analysis.images.saved import RunImages
from analysis.images.segmented import VOID, SegmentedImage
from analysis.style import Panel, Plate, paper, plain

Kind = Literal[
    "boxes", "attention", "activation", "crf", "retrieved", "truth", "disagreement", "bilinear", "prediction"
]
_KINDS: tuple[Kind, ...] = (
    "boxes", "attention", "activation", "crf", "retrieved", "truth", "disagreement", "bilinear", "prediction",
)  # fmt: skip
_WORDS: dict[Kind, str] = {
    "boxes": "photo and boxes",
    "attention": "A: looks like background",
    "activation": "CAM: looks like the class",
    "crf": "label of the CRF",
    "retrieved": "label by retrieval",
    "truth": "truth",
    "disagreement": "labels disagree",
    "bilinear": "scores, bilinear",
    "prediction": "prediction",
}
_WIDTH = 2.45  # inches of a panel
_MOST_NAMED = 12  # boxes up to which each has its name
_LETTERS_OF_NAME = 18
_LETTERS_OF_RUN = 40
_MARK = "#e6007e"  # of disagreeing pixels without a confidence; no color of VOC's first classes
_FADED = 0.25  # contrast that is left of the photo behind disagreeing pixels
_SAID: dict[Kind, str] = {
    "boxes": "Boxes are all that is given of a training image: each names an object and its extent.",
    "attention": "A, background attention: how much a place inside the boxes looks like the background outside them "
    "(bright: like background).",
    "activation": "CAM, class activation map: how strongly a place speaks for the class of its box (bright: strongly).",
    "crf": "Label of the CRF: a dense conditional random field (CRF) refines both maps along the edges of the photo.",
    "retrieved": "Label by retrieval: each pixel gets the class whose mean feature it is nearest to.",
    "truth": "Truth: the annotated mask, which is not used to make pseudo labels; percentages are the shares of its "
    "pixels that are named rightly.",
    "bilinear": "Scores, bilinear: the class with the best of the scores that a filter was given, only up-sampled.",
    "prediction": "Prediction: what the trained network finds without any boxes.",
}


def choose_exhibits(candidates: Sequence[RunImages]) -> tuple[list[ImageOfRuns[SegmentedImage]], list[str]]:
    """Return the images to draw, those of validation first, and notes on the runs and images left out."""
    exhibits: list[ImageOfRuns[SegmentedImage]] = []
    notes: list[str] = []
    for use in ("validation", "training"):
        of_use = {id(run.record): [image for image in run.segmented if image.use == use] for run in candidates}
        found, left_out = choose_images(candidates, of_use)
        exhibits += found
        notes += left_out
    return exhibits, list(dict.fromkeys(notes))


@paper
def exhibit(image: ImageOfRuns[SegmentedImage], index: int) -> Plate:
    """Draw one image as a row: whatever there is of it, panels that are the same for all runs once.

    Args:
        image: The image, as several runs have it.
        index: Index of the image on the page, for the file names.
    """
    panels: list[Panel] = []
    drawn: list[Kind] = []
    for kind in _KINDS:
        seen: list[tuple[np.ndarray, ...]] = []
        for i, (label, one) in enumerate(image.by_run.items()):
            arrays = _arrays(one, kind)
            if arrays is None or any(_are_equal(arrays, earlier) for earlier in seen):
                continue
            seen.append(arrays)
            is_shared = all(
                (other := _arrays(it, kind)) is None or _are_equal(arrays, other) for it in image.by_run.values()
            )
            words = _title(one, kind)
            title = words if is_shared else f"{cut_start(label)}\n{words}"
            name = kind if is_shared else f"{kind}-{i + 1}"
            panels.append(Panel(name, f"{words} of {image.name}".replace("\n", ": "), _draw(one, kind, title)))
            drawn.append(kind)
    legend = color_legend(list(image.by_run.values()), width=_WIDTH)
    panels.append(Panel("classes", f"Colors of the classes in {image.name}", legend))
    first = image.first
    return Plate(
        name=f"{first.use}-{index + 1}-{slug(image.name)}",
        title=f"{first.use.capitalize()} image {image.name}, {image.steps}",
        caption=_caption(list(image.by_run.values()), list(dict.fromkeys(drawn))),
        panels=panels,
        is_row=True,
    )


def cut_start(label: str) -> str:
    """Return a run's label that fits a title: of a long one the end, where names of runs differ."""
    return label if len(label) <= _LETTERS_OF_RUN else f"...{label[-_LETTERS_OF_RUN + 3 :]}"


def _arrays(image: SegmentedImage, kind: Kind) -> tuple[np.ndarray, ...] | None:
    """Return what a panel shows, None where the image has none of it."""
    if kind == "boxes":
        return image.image, image.boxes, image.box_classes
    if kind == "disagreement":
        differing = image.disagreement
        return None if differing is None else (differing, *([] if image.confidence is None else [image.confidence]))
    value = getattr(image, kind)
    return None if value is None else (value,)


def _are_equal(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(one, other, equal_nan=one.dtype.kind == "f") for one, other in zip(first, second, strict=True)
    )


def _title(image: SegmentedImage, kind: Kind) -> str:
    if kind == "boxes":
        count = len(image.boxes)
        return "photo, no boxes" if not count else f"photo and {count} box{'es' if count > 1 else ''}"
    if kind == "disagreement":
        differing = image.disagreement
        assert differing is not None
        return f"{_WORDS[kind]} on {_percent(float(differing.mean()))}"
    if kind in ("crf", "retrieved", "bilinear", "prediction") and np.isfinite(
        right := image.right_share(getattr(image, kind))
    ):
        return f"{_WORDS[kind]}, {_percent(right)} right"
    return _WORDS[kind]


def _percent(value: float) -> str:
    """Return a share in percent; one that is not 0 or 1 is not rounded to it."""
    if 0 < value < 0.001 or 0.999 < value < 1:
        return "less than 0.1 %" if value < 0.5 else "more than 99.9 %"
    return f"{100 * value:.1f} %"


def _draw(image: SegmentedImage, kind: Kind, title: str) -> Figure:
    if kind == "boxes":
        return _photo(image, title)
    if kind == "disagreement":
        return _disagreement(image, title)
    values = getattr(image, kind)
    if kind == "attention":
        scale = Normalize(0, 1)
        return picture(values, title=title, scale=scale, colors="cividis", bar="background attention A", width=_WIDTH)
    if kind == "activation":
        scale = range_of([values], low=0.0)
        return picture(values, title=title, scale=scale, colors="magma", bar="class activation", width=_WIDTH)
    axes = picture_axes(image.size[0] / image.size[1], title=title, with_bar=False, width=_WIDTH)
    show_colors(axes, colored(values))
    return figure_of(axes)


def _photo(image: SegmentedImage, title: str) -> Figure:
    """Draw the photo with its boxes, in the colors of their classes."""
    axes = picture_axes(image.size[0] / image.size[1], title=title, with_bar=False, width=_WIDTH)
    show(axes, image.image, scale=None)
    height, width = image.size
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    for (left, top, right, bottom), number in zip(image.boxes.tolist(), image.box_classes.tolist(), strict=True):
        corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
        common = {"fill": False, "zorder": 2}
        axes.add_patch(Rectangle(corner, *size, edgecolor="white", linewidth=2.6, gid="rim", **common))
        axes.add_patch(Rectangle(corner, *size, edgecolor=share(number), linewidth=1.4, gid="box", **common))
    for (left, top, _, _), number in _named(image):
        axes.annotate(
            plain(cut(image.class_name(number), _LETTERS_OF_NAME)), (max(left - 0.5, -0.5), max(top - 0.5, -0.5)),
            xytext=(2, -2), textcoords="offset points", ha="left", va="top", fontsize=6, color=ink(number), zorder=3,
            annotation_clip=True, clip_on=True,
            bbox={"boxstyle": "square,pad=0.15", "facecolor": share(number), "edgecolor": "white", "linewidth": 0.4},
        )  # fmt: skip
    return figure_of(axes)


def _named(image: SegmentedImage) -> Iterable[tuple[list[float], int]]:
    """Return the boxes that have their names written on them; of many, none: the legend has the colors."""
    if len(image.boxes) > _MOST_NAMED:
        return []
    return zip(image.boxes.tolist(), image.box_classes.tolist(), strict=True)


def _disagreement(image: SegmentedImage, title: str) -> Figure:
    """Draw where both pseudo labels differ: on a faded photo, in the color of the confidence where it is known."""
    differing, sure = image.disagreement, image.confidence
    assert differing is not None
    gray = image.image.mean(axis=2, keepdims=True) / 255
    behind = np.repeat(1 - _FADED * (1 - gray), 3, axis=2)  # (H, W, 3)
    scale = Normalize(0, 1)
    color = np.array(to_rgb(_MARK)) if sure is None else colormaps["viridis"](scale(np.nan_to_num(sure)))[:, :, :3]
    values = np.where(differing[:, :, None], color, behind)
    if sure is None:
        axes = picture_axes(image.size[0] / image.size[1], title=title, with_bar=False, width=_WIDTH)
        show_colors(axes, (255 * values).round().astype(np.uint8))
        return figure_of(axes)
    return picture(
        values, title=title, scale=scale, colors="viridis", bar="confidence in the label of the CRF", width=_WIDTH
    )


def _caption(images: Sequence[SegmentedImage], drawn: Sequence[Kind]) -> str:
    sentences = [_SAID[kind] for kind in drawn if kind in _SAID]
    if "boxes" in drawn and not any(len(image.boxes) for image in images):
        sentences[0] = "The image has no boxes."
    elif "prediction" in drawn:
        sentences[0] = "Boxes: of the annotation, for comparison; the network does not get them."
    if "disagreement" in drawn:
        text = "Labels disagree: where the two pseudo labels name different classes"
        if any(image.confidence is not None for image in images):
            text += (
                ", in the color of the network's confidence sigma in the label of the CRF: near 1 the pixel is learned "
                "almost as where they agree, near 0 it is nearly ignored"
            )
        sentences.append(f"{text}.")
    if any(VOID in image.numbers for image in images):
        sentences.append("Not counted: outlines and objects that the truth leaves open.")
    return " ".join(sentences)
