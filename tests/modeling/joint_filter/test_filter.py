"""`DKNModel.filter`: lists and batches, arguments, overshoot, hole rules that would take values, and what it leaves."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from modeling.joint_filter.image_processing_dkn import DKNImageProcessor
from modeling.joint_filter.images_dkn import read_target
from modeling.joint_filter.modeling_dkn import DKNModel, DKNOutput

from .plain_filter import random_filter

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (20, 24, 3), dtype=np.uint8)
DEPTH = RANDOM.uniform(1, 5, (20, 24)).astype(np.float32)


# --------------------------------------------------------------------------------------------------- lists and batches


def test_a_list_of_images_of_any_sizes_becomes_a_list() -> None:
    model = random_filter()
    guidances = [COLOURS, Image.fromarray(COLOURS[:9]), torch.from_numpy(COLOURS[:, :1])]
    targets = [DEPTH, Image.fromarray(DEPTH[:9]), torch.from_numpy(DEPTH[:, :1])]
    found = model.filter(guidances, tuple(targets))
    assert [type(each) for each in found] == [np.ndarray, Image.Image, Tensor]
    for result, guidance, target in zip(found, guidances, targets, strict=True):
        assert (np.asarray(result) == np.asarray(model.filter(guidance, target))).all()


@pytest.mark.parametrize("axes", [2, 3])
def test_a_batch_becomes_a_list(axes: int) -> None:
    model = random_filter()
    guidance, target = np.stack([COLOURS, COLOURS[::-1]]), np.stack([DEPTH, DEPTH[::-1]])
    found = model.filter(guidance, target if axes == 2 else target[..., None])
    assert len(found) == 2
    assert (found[1].reshape(20, 24) == model.filter(COLOURS[::-1], DEPTH[::-1])).all()
    tensors = torch.from_numpy(guidance).movedim(-1, 1), torch.from_numpy(target)[:, None]
    assert (model.filter(*tensors)[0] == torch.from_numpy(found[0]).reshape(1, 20, 24)).all()


def test_lists_that_do_not_fit_are_refused() -> None:
    model = random_filter()
    with pytest.raises(ValueError, match="guidance: 2 images for 1 targets; write one for each"):
        model.filter([COLOURS, COLOURS], [DEPTH])
    with pytest.raises(ValueError, match="guidance: one image beside several; write one for each"):
        model.filter(COLOURS, [DEPTH])
    with pytest.raises(ValueError, match="target: one image beside several; write one for each"):
        model.filter(COLOURS[None], DEPTH)
    with pytest.raises(ValueError, match="pair 2 of 2: target: 20 x 24 is larger than the guidance, 9 x 24"):
        model.filter([COLOURS, COLOURS[:9]], [DEPTH, DEPTH])


# ----------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("iterations", [1.5, 2.0, "2", True, 0, -1, None])
def test_iterations_are_a_whole_number(iterations: Any) -> None:
    with pytest.raises(ValueError, match=r"iterations: .* given; write 1 or more, a whole number"):
        random_filter().filter(COLOURS, DEPTH, iterations=iterations)


def test_swapped_arguments_are_named() -> None:
    model = random_filter()
    with pytest.raises(ValueError, match=r"divide them\. Are both swapped\? The guidance comes first"):
        model.filter(DEPTH, COLOURS)
    with pytest.raises(ValueError, match=r"larger than the guidance.*Are both swapped\? The guidance comes first"):
        model.filter((100 * DEPTH[::4, ::4]).astype(np.uint16), COLOURS)
    with pytest.warns(
        UserWarning, match=r"guidance: one channel of uint16, beside a target in color; if they are swapped"
    ):
        model.filter((100 * DEPTH).astype(np.uint16), COLOURS)
    model.filter(COLOURS[..., 0], COLOURS)  # near infrared guides a photo: nothing is wrong


def test_a_filter_that_raises_leaves_the_mode_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_filter().train()
    with pytest.raises(ValueError, match="iterations"):
        model.filter(COLOURS, DEPTH, iterations=0)
    assert model.training

    def fail(*_: Any) -> None:
        assert not model.training
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.filter(COLOURS, DEPTH)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_copies_and_half_precision_filter_too(dtype: torch.dtype) -> None:
    model = random_filter()
    expected = model.filter(COLOURS, DEPTH)
    assert (deepcopy(model).filter(COLOURS, DEPTH) == expected).all()
    holed = np.where(DEPTH > 4.9, np.float32(0), DEPTH)
    half: Any = deepcopy(model)
    found = half.to(dtype).filter(COLOURS, holed, iterations=2)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


# ----------------------------------------------------------------------------------------------------------- overshoot


def shifted(model: DKNModel, by: float, monkeypatch: pytest.MonkeyPatch) -> DKNModel:
    """Let a filter give its input back, plus a constant, of the range."""
    monkeypatch.setattr(model, "forward", lambda _, target: DKNOutput(output=target + by))
    return model


@pytest.mark.parametrize("by", [-0.2, 0.2])
def test_a_result_stays_within_the_range_of_the_target_unless_asked_not_to(
    by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = RANDOM.integers(1, 42, (20, 24)).astype(np.uint8)
    target[0, :2] = 1, 41
    model = shifted(random_filter(), by, monkeypatch)
    found = model.filter(COLOURS, target)
    assert (found == np.rint(np.clip(target + 40 * by, 1, 41))).all()
    free = model.filter(COLOURS, target, clip=False)
    assert (free == np.rint(np.clip(target + 40 * by, 0, 255))).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32"])
def test_overshoot_is_never_wrapped(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 bits, the greatest that fp64 has below the type's, which it has not."""
    greatest = np.iinfo(dtype).max
    target = np.linspace(greatest // 2, greatest, 480).astype(dtype).reshape(20, 24)
    target[-10:] = target[-1, -1]
    target[0] = int(target[-1, -1]) * 199 // 200  # so that the greatest does not stand apart
    for clip in (True, False):
        model = shifted(random_filter(), 0.5, monkeypatch)
        found = model.filter(COLOURS, target, invalid="none", clip=clip)
        assert float(found.min()) >= 0.7 * greatest
        assert float(found[-10:].min()) == pytest.approx(greatest, rel=1e-12)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_overshoot_of_64_bits_is_not_wrapped_either(dtype: str) -> None:
    """The greatest of the type is none of fp64, and the next one above does not fit."""
    greatest = np.iinfo(dtype).max
    picture = read_target(np.zeros((2, 2), dtype))
    found = picture.like(torch.tensor([[[2.0**70, 2.0**63], [1.0, -1.0]]], dtype=torch.float64), None)
    assert found[0, 0] == int(np.nextafter(float(greatest), 0))
    assert found[1, 0] == 1
    assert found[1, 1] == (-1 if dtype == "int64" else 0)


def test_a_constant_target_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.full((20, 24), 7, np.float32)
    assert (shifted(random_filter(), 0.3, monkeypatch).filter(COLOURS, flat) == 7).all()


# ----------------------------------------------------------------------------------- hole rules that would take values


def test_a_map_around_zero_is_refused_until_its_values_are_declared() -> None:
    model, target = random_filter(), DEPTH - DEPTH.mean()
    with pytest.raises(ValueError, match=r"target: 48% of its finite pixels are negative.*write invalid='none'"):
        model.filter(COLOURS, target)
    found = model.filter(COLOURS, target, invalid="none")
    assert np.allclose(found + 3, model.filter(COLOURS, target + 3, invalid="none"), atol=1e-5)
    assert (found == model.filter(COLOURS, target, processor=DKNImageProcessor(invalid="none"))).all()


def test_some_negative_values_are_warned_of() -> None:
    target = DEPTH.copy()
    target[:2] = RANDOM.uniform(-2, -1, (2, 24))
    with pytest.warns(UserWarning, match="10% of its finite pixels are negative, and the hole rule `zero` takes them"):
        random_filter().filter(COLOURS, target)


@pytest.mark.parametrize("value", [0, np.nan, -1])
def test_holes_of_a_depth_map_are_silent(value: float) -> None:
    """However many zeros and NaNs; of -1 up to a quarter."""
    target = DEPTH.copy()
    target[: 5 if value == -1 else 18] = value
    found = random_filter().filter(COLOURS, target)
    assert np.array_equal(np.isnan(found) | (found <= 0), np.isnan(target) | (target <= 0))


@pytest.mark.parametrize("kind", ["uint8", "float32", "saliency"])
def test_a_mask_whose_background_counts_as_holes_is_warned_of(kind: str) -> None:
    mask = np.zeros((20, 24), np.uint8)
    mask[5:12, 5:12] = 255
    if kind == "saliency":
        mask[5:12, 5:12] = RANDOM.integers(1, 255, (7, 7))
        mask[5, 5], mask[6, 6] = 1, 255
    target = (mask / 255).astype(np.float32) if kind == "float32" else mask
    with pytest.warns(
        UserWarning, match="zero, and the hole rule `zero` takes them for holes, though it looks like a mask"
    ):
        random_filter().filter(COLOURS, target)
    found = random_filter().filter(COLOURS, target, invalid="none")
    assert found[16:, 16:].max() == 0


def test_black_is_no_hole_where_there_is_only_black_and_white() -> None:
    mask = np.zeros((20, 24), bool)
    mask[5:12, 5:12] = True
    model = random_filter()
    expected = model.filter(COLOURS, (255 * mask).astype(np.uint8), invalid="none")
    assert (model.filter(COLOURS, mask) == (expected > 127)).all()
    assert (np.asarray(model.filter(COLOURS, Image.fromarray(mask))) == expected).all()


@pytest.mark.parametrize("kind", ["uint16", "I;16", "int32", "float32"])
def test_the_greatest_value_of_16_bits_is_warned_of_where_it_stands_apart(kind: str) -> None:
    values = RANDOM.integers(500, 5000, (20, 24)).astype(np.uint16)
    values[:3, :5] = 65_535
    target: Any = Image.fromarray(values) if kind == "I;16" else values.astype(kind)
    message = "target: 3.1% of its pixels are 65535, far above all others, and count as values; write invalid=65535"
    with pytest.warns(UserWarning, match=message):
        random_filter().filter(COLOURS, target)
    found = np.asarray(random_filter().filter(COLOURS, target, invalid=65_535))
    assert (found[:3, :5] == 65_535).all()
    assert found[3:].max() <= 5000
    stretched = np.linspace(1, 65_535, 480).reshape(20, 24).astype(np.uint16)
    random_filter().filter(COLOURS, stretched)  # in silence
