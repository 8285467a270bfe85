"""Random scales, crops, flips and colors of an annotated image, as a pure function of (seed, step, sample id)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from modeling.segmentation.facts_bap import VOID
from train.data.annotated.images import Annotated
from train.data.drawn.draws import Draws

_STREAM = 0xA06
_PADDING = (123, 117, 104)  # color around an image smaller than the crop: the mean of ImageNet
_SMALLEST_BOX = 2  # pixels along a side; what is left of a box after a crop may be less, and is then no box


class Augmentation(NamedTuple):
    """How images are varied.

    Args:
        crop: Side of the square crop in pixels; None: whole images, neither scaled nor cropped.
        scale: Smallest and largest factor of the size.
        flips: Whether half of the images are mirrored left to right.
        jitter: Largest relative change of brightness, contrast and saturation.
    """

    crop: int | None
    scale: tuple[float, float] = (1.0, 1.0)
    flips: bool = False
    jitter: float = 0.0


def augmented(sample: Annotated, how: Augmentation, *, seed: int, step: int, sample_id: int) -> Annotated:
    """Return a varied image with its boxes and mask.

    Boxes are cut at the edges of the crop; those that leave less than two pixels along a side are left out. Padding is
    VOID in the mask.

    Args:
        sample: The image.
        how: What varies.
        seed: Seed of the run's samples.
        step: The optimizer step that uses the sample, from 1.
        sample_id: Index of the image.
    """
    draws = Draws(_STREAM, seed, step, sample_id)
    factor = draws.uniform(*how.scale)
    flipped = draws.uniform(0, 1) < 0.5 and how.flips
    corner = draws.uniform(0, 1), draws.uniform(0, 1)
    strengths = [1 + how.jitter * draws.uniform(-1, 1) for _ in range(3)]
    if how.crop is not None:
        sample = _cropped(_scaled(sample, factor), how.crop, corner)
    if flipped:
        sample = _mirrored(sample)
    return sample._replace(image=_recolored(sample.image, strengths)) if how.jitter else sample


def _scaled(sample: Annotated, factor: float) -> Annotated:
    height, width = sample.image.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    across, down = size[0] / width, size[1] / height
    image = np.asarray(Image.fromarray(sample.image).resize(size, Image.Resampling.BILINEAR))
    mask = None if sample.mask is None else _nearest(sample.mask, size[1], size[0])
    starts, ends = np.floor(sample.boxes[:, :2] * (across, down)), np.ceil(sample.boxes[:, 2:] * (across, down))
    boxes = np.concatenate((starts, np.minimum(ends, size)), axis=1).astype(np.int64)
    return sample._replace(image=image, boxes=boxes, mask=mask)


def _nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a mask at another size, each pixel with the label at its center."""
    rows, columns = (
        ((np.arange(after) + 0.5) * before / after).astype(np.int64)
        for after, before in zip((height, width), mask.shape[:2], strict=True)
    )
    return mask[rows[:, None], columns]


def _cropped(sample: Annotated, crop: int, corner: tuple[float, float]) -> Annotated:
    """Cut a square out at a random corner, of (0, 0) to (1, 1); where the image is smaller, pad around it."""
    height, width = sample.image.shape[:2]
    top, left = (int(share * (abs(side - crop) + 1)) for share, side in zip(corner, (height, width), strict=True))
    top, left = top if height >= crop else -top, left if width >= crop else -left
    image = np.empty((crop, crop, 3), np.uint8)
    image[:] = _PADDING
    mask = None if sample.mask is None else np.full((crop, crop, *sample.mask.shape[2:]), VOID, np.uint8)
    there = np.s_[max(0, -top) : min(crop, height - top), max(0, -left) : min(crop, width - left)]
    here = np.s_[max(0, top) : min(height, top + crop), max(0, left) : min(width, left + crop)]
    image[there] = sample.image[here]
    if mask is not None and sample.mask is not None:
        mask[there] = sample.mask[here]
    boxes = np.clip(sample.boxes - (left, top, left, top), 0, crop)
    kept = (boxes[:, 2:] - boxes[:, :2] >= _SMALLEST_BOX).all(axis=1)
    return sample._replace(image=image, boxes=boxes[kept], classes=sample.classes[kept], mask=mask)


def _mirrored(sample: Annotated) -> Annotated:
    width = sample.image.shape[1]
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = width - sample.boxes[:, [2, 0]]
    mask = None if sample.mask is None else np.ascontiguousarray(sample.mask[:, ::-1])
    return sample._replace(image=np.ascontiguousarray(sample.image[:, ::-1]), boxes=boxes, mask=mask)


def _recolored(image: np.ndarray, strengths: list[float]) -> np.ndarray:
    picture = Image.fromarray(image)
    for kind, strength in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), strengths, strict=True
    ):
        picture = kind(picture).enhance(strength)
    return np.asarray(picture)
