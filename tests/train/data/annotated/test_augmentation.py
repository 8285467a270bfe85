"""Drawn objects, and variations of images that keep image, boxes and mask together."""

from __future__ import annotations

import numpy as np
import pytest

from modeling.segmentation.facts_bap import VOID
from train.data.annotated.augmentation import Augmentation, augmented
from train.data.annotated.drawn import DrawnObjects
from train.data.annotated.images import Annotated

SOURCE = DrawnObjects(range(40), (72, 96))


def vary(sample: Annotated, how: Augmentation, **keys: int) -> Annotated:
    return augmented(sample, how, **({"seed": 0, "step": 1, "sample_id": 0} | keys))


def test_boxes_of_drawn_objects_are_those_of_their_visible_pixels() -> None:
    shares, classes = [], set()
    for index in range(len(SOURCE.names)):
        sample = SOURCE.read(index)
        assert sample.image.shape == (72, 96, 3)
        assert sample.mask is not None
        inside = np.zeros(sample.mask.shape, bool)
        for (x0, y0, x1, y1), number in zip(sample.boxes, sample.classes, strict=True):
            inside[y0:y1, x0:x1] = True
            part = sample.mask[y0:y1, x0:x1] == number
            assert part[0].any()
            assert part[-1].any()
            assert part[:, 0].any()
            assert part[:, -1].any()
            shares.append(part.mean())
            classes.add(int(number))
        assert (sample.mask[~inside] == 0).all()
        assert 1 <= len(sample.boxes) <= 4
    assert classes == {1, 2, 3, 4}
    assert 0.5 < np.mean(shares) < 0.75  # a filled box is a poor mask


def test_a_scene_is_a_function_of_its_index() -> None:
    one, other = SOURCE.read(3), DrawnObjects(range(3, 5), (72, 96)).read(0)
    assert np.array_equal(one.image, other.image)
    assert not np.array_equal(one.image, SOURCE.read(4).image)


def test_a_variation_is_a_function_of_seed_step_and_sample() -> None:
    how = Augmentation(64, (0.5, 1.5), flips=True, jitter=0.5)
    sample = SOURCE.read(0)
    first = vary(sample, how)
    again = vary(sample, how)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    for change in ({"seed": 1}, {"step": 2}, {"sample_id": 1}):
        assert not np.array_equal(vary(sample, how, **change).image, first.image)


def test_mask_and_boxes_follow_the_image() -> None:
    """An image whose red tells the class at each pixel, under scale, crop and flip."""
    sample = SOURCE.read(8)
    assert sample.mask is not None
    told = sample._replace(image=np.repeat((40 * sample.mask)[:, :, None], 3, axis=2))
    for step in range(20):
        out = vary(told, Augmentation(64, (0.5, 1.5), flips=True), step=step)
        assert out.image.shape == (64, 64, 3)
        assert out.mask is not None
        inside = out.mask != VOID
        differ = np.abs(out.image[..., 0].astype(int) - 40 * out.mask) > 20
        assert (differ & inside).mean() < 0.08  # along edges alone, where the image is interpolated
        covered = np.zeros((64, 64), bool)
        for x0, y0, x1, y1 in out.boxes:
            assert 0 <= x0 < x1 <= 64
            assert 0 <= y0 < y1 <= 64
            covered[y0:y1, x0:x1] = True
        assert not ((out.mask > 0) & inside & ~covered)[2:-2, 2:-2].any() or len(out.boxes) < len(sample.boxes)


def test_small_images_are_padded_with_void_and_the_mean_color() -> None:
    sample = SOURCE.read(0)
    out = vary(sample, Augmentation(120))
    assert out.mask is not None
    padding = out.mask == VOID
    assert padding.sum() == 120 * 120 - 72 * 96
    assert (out.image[padding] == (123, 117, 104)).all()
    assert np.array_equal(out.image[~padding].reshape(72, 96, 3), sample.image)
    assert np.array_equal(out.boxes[:, 2:] - out.boxes[:, :2], sample.boxes[:, 2:] - sample.boxes[:, :2])


def test_flips_alone_mirror_half_of_the_samples() -> None:
    sample, flipped = SOURCE.read(0), 0
    for step in range(40):
        out = vary(sample, Augmentation(None, flips=True), step=step)
        if not np.array_equal(out.image, sample.image):
            flipped += 1
            assert np.array_equal(out.image, sample.image[:, ::-1])
            assert np.array_equal(out.boxes[:, 0], 96 - sample.boxes[:, 2])
            assert out.mask is not None
            assert sample.mask is not None
            assert np.array_equal(out.mask, sample.mask[:, ::-1])
    assert 10 < flipped < 30


def test_without_variation_nothing_changes() -> None:
    sample = SOURCE.read(0)
    out = vary(sample, Augmentation(None))
    assert out is sample or np.array_equal(out.image, sample.image)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_colors_change_only_with_jitter(jitter: float) -> None:
    sample = SOURCE.read(0)
    out = vary(sample, Augmentation(None, jitter=jitter))
    assert np.array_equal(out.image, sample.image) == (jitter == 0)
    assert np.array_equal(out.boxes, sample.boxes)
