"""A filter knows what it was trained for: what fits passes in silence, what does not is refused or warned of."""

from __future__ import annotations

import re
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling.joint_filter.image_processing_dkn import DKNImageProcessor
from modeling.joint_filter.purpose_dkn import check_sizes
from train.data.images.resize import downsample

from .plain_filter import random_filter

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8)
DEPTH = RANDOM.uniform(1, 5, (48, 64)).astype(np.float32)
BY_EIGHT = {"task": "depth_upsampling", "scale": 8, "downsampling": "bicubic"}
FULL_SIZE = {"task": "texture_removal", "scale": 1, "noise": 0.1}


def smaller(scale: int) -> np.ndarray:
    return DEPTH[::scale, ::scale].copy()


# -------------------------------------------------------------------------------------------------------------- scales


def test_the_scale_of_the_training_passes() -> None:
    """Bit for bit what a filter of unknown purpose makes of it."""
    expected = random_filter().filter(COLOURS, smaller(8))
    assert (random_filter(purpose=BY_EIGHT).filter(COLOURS, smaller(8)) == expected).all()
    assert random_filter(purpose=FULL_SIZE).filter(COLOURS, DEPTH).shape == DEPTH.shape


def test_a_target_at_full_resolution_is_refused_where_small_ones_were_learned() -> None:
    message = "target: it has the guidance's size, 48 x 64, but this filter sharpens targets 8 times smaller"
    with pytest.raises(ValueError, match=message):
        random_filter(purpose=BY_EIGHT).filter(COLOURS, DEPTH)
    with pytest.raises(ValueError, match=message):
        random_filter(purpose=BY_EIGHT).filter(COLOURS, DEPTH, processor=DKNImageProcessor(invalid="none"))
    with pytest.raises(ValueError, match=message):
        random_filter(purpose=BY_EIGHT).filter(COLOURS, DEPTH, invalid="none")
    with pytest.raises(ValueError, match=message):
        DKNImageProcessor(scale=8)(COLOURS, DEPTH)


@pytest.mark.parametrize("scale", [2, 4, 16])
def test_another_scale_is_warned_of(scale: int) -> None:
    model = random_filter(purpose=BY_EIGHT)
    message = f"target: {scale} times coarser than the guidance, but this filter was trained for targets 8 times"
    with pytest.warns(UserWarning, match=message):
        found = model.filter(COLOURS, smaller(scale))
    assert (found == random_filter().filter(COLOURS, smaller(scale))).all()


def test_a_small_target_is_warned_of_where_full_size_was_learned() -> None:
    with pytest.warns(UserWarning, match="4 times coarser .* trained for targets at full resolution"):
        random_filter(purpose=FULL_SIZE).filter(COLOURS, smaller(4))


def test_the_scale_of_a_target_that_was_enlarged_before_can_be_stated() -> None:
    model = random_filter(purpose=BY_EIGHT)
    assert (model.filter(COLOURS, DEPTH, scale=8) == random_filter().filter(COLOURS, DEPTH)).all()
    assert model.filter(COLOURS, smaller(2), scale=8).shape == DEPTH.shape
    with pytest.warns(UserWarning, match="target: 4 times coarser"):
        model.filter(COLOURS, DEPTH, scale=4)
    with pytest.raises(ValueError, match="this filter sharpens targets 8 times smaller"):
        model.filter(COLOURS, DEPTH, scale=1)
    with pytest.raises(ValueError, match="scale: 4 given, but 6 x 8 is 8 times smaller than 48 x 64; leave scale out"):
        model.filter(COLOURS, smaller(8), scale=4)
    with pytest.raises(ValueError, match="scale: 'half' is not a number of at least 1"):
        model.filter(COLOURS, smaller(8), scale="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("size", [(427, 561), (375, 463), (109, 131), (16, 17)])
def test_a_size_that_a_scale_does_not_divide_fits_it_rounded_up_or_down(size: tuple[int, int], scale: int) -> None:
    """As training makes it, and as slices do; other sizes of the same scale are warned of."""
    down = downsample(np.zeros(size, np.float32), scale, "bicubic").shape
    up = (-(-size[0] // scale), -(-size[1] // scale))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for small in (down, up, (round(size[0] / scale), round(size[1] / scale))):
            check_sizes(size, (small[0], small[1]), trained=scale, stated=None)
        check_sizes(size, size, trained=1, stated=None)
    if scale > 3:
        with pytest.warns(UserWarning, match="trained for"):
            check_sizes(size, (size[0] // (scale // 2), size[1] // (scale // 2)), trained=scale, stated=None)


# ------------------------------------------------------------------------------------------------------------- aspects


@pytest.mark.parametrize("purpose", [None, BY_EIGHT], ids=["unknown", "known"])
@pytest.mark.parametrize(
    "size",
    [(6, 6), (8, 8), (8, 6), (6, 4), (48, 62), (40, 64), (48, 8), (12, 32)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_a_target_of_another_aspect_is_refused(size: tuple[int, int], purpose: dict[str, Any] | None) -> None:
    message = f"target: {size[0]} x {size[1]} has another aspect than the guidance, 48 x 64, and would be stretched"
    with pytest.raises(ValueError, match=message):
        random_filter(purpose=purpose).filter(COLOURS, np.ones(size, np.float32))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (3, 4), (5, 7), (6, 9), (7, 9), (24, 32)])
def test_rounded_sizes_have_the_aspect_of_the_guidance(size: tuple[int, int]) -> None:
    check_sizes((48, 64), size, trained=None, stated=None)


# ----------------------------------------------------------------------------------------------------- unknown purpose


def test_a_folder_without_a_purpose_is_warned_of_once(tmp_path: Path) -> None:
    random_filter().save_pretrained(tmp_path)
    model = type(random_filter()).from_pretrained(tmp_path)
    message = re.escape(f"{tmp_path}: config.json has no `purpose`")
    with pytest.warns(UserWarning, match=message) as caught:
        first = model.filter(COLOURS, DEPTH)
    assert len(caught) == 1
    assert (model.filter(COLOURS, DEPTH) == first).all()  # in silence, as warnings are errors here
    assert (deepcopy(model).filter(COLOURS, smaller(2)) > 0).all()


def test_a_folder_keeps_purpose_and_processor(tmp_path: Path) -> None:
    model = random_filter(purpose={**BY_EIGHT, "invalid": 7.0, "value_range": [0.5, 10.0]})
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.purpose == model.config.purpose
    processor = DKNImageProcessor.from_pretrained(tmp_path)
    assert (processor.invalid, processor.scale) == (7.0, 8)
    assert loaded._own_processor().to_dict() == processor.to_dict()
    (tmp_path / "preprocessor_config.json").unlink()
    again = type(model).from_pretrained(tmp_path)._own_processor()
    assert (again.invalid, again.scale) == (7.0, 8)


def test_a_processor_with_another_scale_is_refused() -> None:
    for scale in (0, 0.5, "8", True, float("nan")):
        with pytest.raises(ValueError, match=r"scale: .* is no number of at least 1; write 1 for full resolution"):
            DKNImageProcessor(scale=scale)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="invalid: a processor is given, too"):
        random_filter().filter(COLOURS, DEPTH, processor=DKNImageProcessor(), invalid="none")
