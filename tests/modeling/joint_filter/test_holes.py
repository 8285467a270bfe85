"""Holes in a target: filled before it is enlarged, as in training, never read, and given back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from modeling.joint_filter.image_processing_dkn import DKNImageProcessor
from modeling.joint_filter.modeling_dkn import DKNOutput
from train.data.images.patches import min_max
from train.data.images.resize import degrade, fill_holes, upsample

from .plain_filter import random_filter

COLOURS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
BY_FOUR = {"task": "depth_upsampling", "scale": 4}
PLACES = np.arange(1, 1 + 12 * 16, dtype=np.float32).reshape(12, 16)  # each value tells where it stands


def room() -> tuple[np.ndarray, np.ndarray]:
    """A wall at 3 m, something at 0.7 m in the corner, and where there is to be a hole in the wall."""
    depth = np.full((12, 16), 3.0, np.float32)
    depth[9:, 12:] = 0.7
    hole = np.zeros((12, 16), bool)
    hole[2:5, 3:6] = True
    return depth, hole


def fill(places: np.ndarray, valid: Any) -> np.ndarray:
    """Return what the processor puts into the holes of a map of places."""
    span = min_max(places[..., None], valid)
    target = DKNImageProcessor()(np.zeros((*valid.shape, 3), np.uint8), np.where(valid, places, 0))["target"]
    return np.rint(target[0, 0].numpy() * span.width + span.minimum).astype(int)


def distances(filled: Any) -> np.ndarray:
    """Return how far from each place the one is that its value tells."""
    rows, columns = np.indices(filled.shape)
    width = filled.shape[1]
    return np.hypot((filled - 1) // width - rows, (filled - 1) % width - columns)


# --------------------------------------------------------------------------------------------------- closed forms


def test_a_constant_depth_stays_constant_around_its_holes_which_stay_zero() -> None:
    depth = np.full((12, 16), 3.0, np.float32)
    hole = room()[1]
    found = random_filter().filter(COLOURS, np.where(hole, 0, depth), iterations=2)
    there = hole.repeat(4, 0).repeat(4, 1)
    assert (found == np.where(there, 0, 3)).all()


@pytest.mark.parametrize("value", [0.0, np.nan, -1.0, np.inf])
def test_a_wall_with_a_hole_is_filtered_as_one_without(value: float) -> None:
    """The wall's own value fills it; holes that counted as 0.7 m dragged the wall beside them down by 0.85 m."""
    depth, hole = room()
    holed = np.where(hole, np.float32(value), depth)
    there = hole.repeat(4, 0).repeat(4, 1)
    target = DKNImageProcessor()(COLOURS, holed)["target"][0, 0].numpy()
    np.testing.assert_allclose(target[:26, :36], 1, atol=1e-6)  # 0.7 m is 0; measured: 2e-7; with holes of 0.7 m: 0.37
    model = random_filter()
    whole, found = model.filter(COLOURS, depth), model.filter(COLOURS, holed)
    assert np.array_equal(found[there], np.full(16 * 9, np.float32(value)), equal_nan=True)
    assert (found[~there] == whole[~there]).all()


def test_a_hole_keeps_the_value_and_type_that_it_had() -> None:
    hole = room()[1]
    there = hole.repeat(4, 0).repeat(4, 1)
    model = random_filter()
    millimetres = np.where(hole, 0, 3000 + PLACES).astype(np.uint16)
    found = model.filter(Image.fromarray(COLOURS), Image.fromarray(millimetres))
    assert found.mode == "I;16"
    assert ((np.asarray(found) == 0) == there).all()
    marked = np.where(hole, np.float32(0.1), PLACES)
    found = model.filter(COLOURS, marked, processor=DKNImageProcessor(invalid=0.1))  # compared in fp32, as in training
    assert (found[there] == np.float32(0.1)).all()
    assert (found[~there] != np.float32(0.1)).all()


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_target_of_nothing_but_holes_stays_what_it_is(value: float) -> None:
    nothing = np.full((12, 16), value, np.float32)
    assert (DKNImageProcessor()(COLOURS, nothing)["target"] == 0).all()
    found = random_filter().filter(COLOURS, nothing, iterations=2)
    assert np.array_equal(found, np.full((48, 64), value, np.float32), equal_nan=True)


def test_black_is_a_colour() -> None:
    black = COLOURS.copy()
    black[10:30, 20:50] = 0
    model = random_filter()
    found = model.filter(black, black)
    assert (found == model.filter(black, black, processor=DKNImageProcessor(invalid="none"))).all()
    assert found[12:28, 22:48].any()  # filtered, not put back


def test_a_pixel_without_one_colour_is_a_hole_as_in_training() -> None:
    colours = (COLOURS / 255).astype(np.float32)
    colours[5, 7, 1] = np.nan
    target = DKNImageProcessor()(COLOURS, colours)["target"][0]
    neighbours = torch.stack([target[:, 4, 7], target[:, 6, 7], target[:, 5, 6], target[:, 5, 8]])
    assert (neighbours == target[:, 5, 7]).all(dim=1).any()


# --------------------------------------------------------------------------------------- as training, and exactly


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97, 0.999])
def test_a_hole_has_a_value_as_near_as_any(share: float) -> None:
    """Against every valid pixel, one by one; and never farther than training's, which goes in steps of 5 x 5."""
    random = np.random.default_rng(int(1000 * share))
    for _ in range(5):
        height, width = random.integers(5, 50, 2)
        valid = random.random((height, width)) >= share
        valid[random.integers(height), random.integers(width)] = True
        places = np.arange(1, 1 + height * width, dtype=np.float32).reshape(height, width)
        found = fill(places, valid)
        rows, columns = np.nonzero(valid)
        here = np.indices(valid.shape)
        nearest = np.hypot(here[0][..., None] - rows, here[1][..., None] - columns).min(axis=2)
        np.testing.assert_allclose(distances(found), nearest, atol=1e-9)
        assert valid.flatten()[found - 1].all()
        training = distances(fill_holes(places, valid).astype(int))
        assert (distances(found) <= training + 1e-9).all()
        assert (distances(found) >= 0.95 * training - 1e-9).all()  # 32 of 13,314 are nearer, the most 0.971 as far


@pytest.mark.parametrize("scale", [2, 4])
def test_a_target_with_a_missing_side_becomes_what_training_sees(scale: int) -> None:
    """Each hole has one nearest value there, so both fill alike, to the last step: enlarging."""
    random = np.random.default_rng(1)
    depth = random.uniform(1, 5, (24, 32)).astype(np.float32)
    valid = np.ones_like(depth, bool)
    valid[:, :9] = False
    guidance = np.zeros((24 * scale, 32 * scale, 3), np.uint8)
    found = DKNImageProcessor()(guidance, np.where(valid, depth, 0))["target"][0, 0].numpy()
    span = min_max(depth[..., None], valid)
    expected = upsample(fill_holes(span.to_unit(depth), valid), guidance.shape[:2])
    np.testing.assert_allclose(found, expected, atol=1e-5)  # measured: 3e-7; holes that are 0: 1


def test_what_training_makes_of_a_whole_image_is_what_the_processor_makes_of_the_small_one() -> None:
    """`degrade` of a map that is constant in cells is the processor's of one pixel per cell, holes included."""
    random = np.random.default_rng(2)
    small = random.uniform(1, 5, (12, 16)).astype(np.float32)
    valid = np.ones_like(small, bool)
    valid[:, 12:] = False
    span = min_max(small[..., None], valid)
    large, known = (x.repeat(4, 0).repeat(4, 1) for x in (span.to_unit(small), valid))
    expected = degrade(large, known, scale=4, mode="nearest_center")
    found = DKNImageProcessor()(COLOURS, np.where(valid, small, 0))["target"][0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)  # measured: 2e-7


# ------------------------------------------------------------------------------------------------------ iterations


def test_what_a_network_makes_up_in_a_hole_is_not_seen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing taught it what to give there: a mean of 5 x 5 pixels that writes a million into the hole spoils none."""
    depth, hole = room()
    there = torch.from_numpy(hole.repeat(4, 0).repeat(4, 1))
    model = random_filter()

    def forward(_: Tensor, target: Tensor) -> Any:
        mean = torch.nn.functional.avg_pool2d(target, 5, stride=1, padding=2, count_include_pad=False)
        return DKNOutput(output=mean.masked_fill(there, 1e6))

    monkeypatch.setattr(model, "forward", forward)
    found = model.filter(COLOURS, np.where(hole, 0, depth), iterations=3)
    assert (found[there.numpy()] == 0).all()
    np.testing.assert_allclose(found[:26, :34][~there.numpy()[:26, :34]], 3, atol=1e-6)


# --------------------------------------------------------------------------------------- the processor of a folder


def with_processor(folder: Path, invalid: Any) -> Any:
    """Save a filter whose folder says what a hole is, and load it again."""
    model = random_filter(purpose=BY_FOUR)
    model.save_pretrained(folder)
    DKNImageProcessor(invalid=invalid).save_pretrained(folder)
    return type(model).from_pretrained(folder)


@pytest.mark.parametrize("invalid", ["zero", "none", 7.0])
def test_filter_reads_the_processor_beside_the_model(tmp_path: Path, invalid: Any) -> None:
    target = PLACES.copy()
    target[3:6, 4:8] = 0
    model = with_processor(tmp_path / "first", invalid)
    expected = model.filter(COLOURS, target, processor=DKNImageProcessor(invalid=invalid))
    assert (model.filter(COLOURS, target) == expected).all()
    default = random_filter().filter(COLOURS, target)
    assert (expected == default).all() == (invalid == "zero")
    model.save_pretrained(tmp_path / "second")  # as it was, not the default
    again = type(model).from_pretrained(tmp_path / "second")
    assert (again.filter(COLOURS, target) == expected).all()


def test_the_processor_is_found_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = with_processor(Path("filter"), "none")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    assert model._own_processor().invalid == "none"


def test_the_processor_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_processor(tmp_path, "none")
    model.filter(COLOURS, PLACES)
    monkeypatch.setattr(DKNImageProcessor, "from_pretrained", None)
    model.filter(COLOURS, PLACES)


def test_without_a_processor_the_default_serves_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_filter(purpose=BY_FOUR)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    loaded = type(model).from_pretrained(tmp_path)
    monkeypatch.setattr(DKNImageProcessor, "from_pretrained", None)  # what asks the hub
    expected = model.filter(COLOURS, PLACES, processor=DKNImageProcessor())
    assert (model.filter(COLOURS, PLACES) == expected).all()
    assert (loaded.filter(COLOURS, PLACES) == expected).all()


def test_a_name_whose_processor_is_not_to_be_had_gets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(name: str) -> None:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(DKNImageProcessor, "from_pretrained", unreachable)
    model = random_filter(name_or_path="somebody/filter", purpose=BY_FOUR)
    assert model._own_processor().invalid == "zero"
    model.filter(COLOURS, PLACES)
    assert asked == ["somebody/filter"]


def test_a_damaged_processor_is_told(tmp_path: Path) -> None:
    model = with_processor(tmp_path, "none")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(OSError, match="not a valid JSON"):
        model.filter(COLOURS, PLACES)
