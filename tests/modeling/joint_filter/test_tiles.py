"""Tiles: equal to the whole image to rounding, whatever the sides, with no more halo than is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.modeling_dkn import DKNModel
from modeling.joint_filter.tiles_dkn import filter_in_tiles, halo_of

from .plain_filter import random_filter, random_pair


def differences(model: DKNModel, size: tuple[int, int], *, tile: int, halo: int) -> torch.Tensor:
    """Return how far tiles are from the whole, at every pixel."""
    guidance, target = random_pair(*size)

    def apply(guidance: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return model(guidance, target).output

    with torch.no_grad():
        return (filter_in_tiles(apply, guidance, target, tile=tile, halo=halo) - apply(guidance, target)).abs()


@pytest.mark.parametrize("fields", [{}, {"residual": False}, {"window_size": 65}, {"architecture": "dkn"}], ids=str)
@pytest.mark.parametrize("size", [(70, 83), (64, 41), (97, 8)], ids=str)
def test_tiles_equal_the_whole(fields: dict[str, Any], size: tuple[int, int]) -> None:
    model = random_filter(**fields)
    found = differences(model, size, tile=32, halo=halo_of(model.config))
    assert found.max() < 1e-5  # measured: see below what a smaller halo does


@pytest.mark.parametrize("architecture", ["fdkn", "dkn"])
def test_a_smaller_halo_would_be_seen(architecture: str) -> None:
    model = random_filter(architecture=architecture)
    found = differences(model, (70, 83), tile=32, halo=halo_of(model.config) - 8)
    assert found.max() > 1e-4


def test_a_halo_covers_the_networks_and_the_window() -> None:
    """FDKN sees 13 cells of 4 pixels, DKN 51 pixels, a sample half a window and the pixel beside it."""
    assert halo_of(DKNConfig()) == 24
    assert halo_of(DKNConfig(architecture="dkn")) == 28
    assert halo_of(DKNConfig(window_size=65)) == 36


def test_filter_works_in_tiles_where_an_image_is_larger() -> None:
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (60, 50, 3), dtype=np.uint8)
    depth = random.uniform(1, 5, (15, 13)).astype(np.float32)
    depth[3:6, 4:8] = 0
    model = random_filter()
    whole = model.filter(colours, depth, iterations=2)
    np.testing.assert_allclose(model.filter(colours, depth, iterations=2, tile=16), whole, atol=1e-5)
    calls = []
    model.register_forward_hook(lambda module, args, output: calls.append(tuple(args[1].shape[2:])))
    model.filter(colours, depth, tile=32)
    assert calls == [(56, 50), (56, 42), (52, 50), (52, 42)]


@pytest.mark.parametrize("tile", [0, 30, -4, 64.0, None])
def test_a_tile_has_whole_cells(tile: Any) -> None:
    with pytest.raises(ValueError, match=r"tile: .* given; write a multiple of 4, a whole number"):
        random_filter().filter(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8)), tile=tile)
