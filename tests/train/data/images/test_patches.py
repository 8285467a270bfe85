"""Training patches as a pure function of (seed, step, sample id)."""

from __future__ import annotations

import numpy as np
import pytest

from train.data.images.pairs import Pair
from train.data.images.patches import min_max, patch


def pair(height: int = 20, width: int = 30) -> Pair:
    """A pair in which every pixel tells its place, in all three images."""
    places = np.arange(height * width, dtype=np.float32).reshape(height, width, 1)
    return Pair("a", np.repeat(places / 600, 3, axis=2), places, places[:, :, 0] % 7 != 0, 1.0)


def cut(step: int, sample_id: int = 0, *, seed: int = 0, flips: bool = True, crop: int | None = 8) -> Pair:
    return patch(pair(), crop=crop, flips=flips, seed=seed, step=step, sample_id=sample_id)


def test_a_patch_is_a_square_of_the_pair_and_its_images_stay_together() -> None:
    for step in range(50):
        found = cut(step)
        assert found.target.shape == (8, 8, 1)
        assert np.abs(found.guidance[:, :, :1] * 600 - found.target).max() < 1e-3
        assert np.array_equal(found.valid, found.target[:, :, 0] % 7 != 0)
        assert set(np.diff(found.target[:, :, 0], axis=0).ravel()) == {30.0}
        assert set(np.diff(found.target[:, :, 0], axis=1).ravel()) in ({1.0}, {-1.0})


def test_patches_depend_on_seed_step_and_sample_alone() -> None:
    assert np.array_equal(cut(3, 5).target, cut(3, 5).target)
    taken = {cut(step, sample, seed=seed).target.tobytes() for step in (1, 2) for sample in (0, 1) for seed in (0, 1)}
    assert len(taken) >= 7  # of 8, as two may fall together by chance


def test_every_place_and_both_sides_are_taken() -> None:
    found = [cut(step).target for step in range(3000)]
    mirrored = [bool(target[0, 0, 0] > target[0, 1, 0]) for target in found]
    corners = {(int(t.min()) // 30, int(t.min()) % 30) for t in found}
    assert corners == {(row, column) for row in range(13) for column in range(23)}
    assert 0.46 < np.mean(mirrored) < 0.54
    assert not any(
        cut(step, flips=False).target[0, 0, 0] > cut(step, flips=False).target[0, 1, 0] for step in range(20)
    )
    corner = [(cut(step, flips=False).target.min(), cut(step).target.min()) for step in range(20)]
    assert all(with_flips == without for with_flips, without in corner)  # flips move no square


def test_without_a_crop_the_pair_is_whole() -> None:
    assert np.array_equal(cut(1, crop=None, flips=False).target, pair().target)
    assert cut(1, crop=None).target.shape == pair().target.shape


def test_a_square_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="crop of 24 pixels does not fit into an image of 20 x 30; use a smaller one"):
        cut(1, crop=24)


def test_the_span_is_of_the_valid_values() -> None:
    target = np.array([[-1000, 2], [4, 12]], np.float32)[:, :, None]
    span = min_max(target, target[:, :, 0] > 0)
    assert span == (2, 10)
    assert span.to_unit(target)[0, 1, 0] == 0
    assert span.to_unit(target)[1, 1, 0] == 1


def test_a_constant_and_an_empty_target_have_a_span() -> None:
    constant = np.full((3, 3, 1), 7, np.float32)
    span = min_max(constant, np.ones((3, 3), bool))
    assert span == (7, 1)
    assert not span.to_unit(constant).any()
    assert min_max(constant, np.zeros((3, 3), bool)) == (0, 1)
