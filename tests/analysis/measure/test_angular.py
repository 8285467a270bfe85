"""Angular distances in closed form, however the tokens are cut into parts."""

from __future__ import annotations

import math

import pytest
import torch

from analysis.measure import angular
from analysis.measure.angular import angular_distance


def test_angles_known_in_closed_form() -> None:
    x = torch.tensor([3.0, 0.0])
    for degrees in (0, 1e-5, 30, 90, 135, 179.99999, 180):
        angle = math.radians(degrees)
        other = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64) * 7
        total, count = angular_distance(x.expand(1, 2), other.expand(1, 2))
        assert float(count) == 1
        assert float(total) == pytest.approx(degrees / 180, rel=1e-9, abs=1e-16)


def test_the_same_vectors_are_at_distance_zero() -> None:
    x = torch.randn(2, 5, 33, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    assert [float(value) for value in angular_distance(x, x)] == [0.0, 10.0]


def test_a_zero_vector_is_left_out_and_one_that_is_not_finite_stays() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    assert [float(value) for value in angular_distance(x, y)] == [0.5, 1.0]
    for value in (math.nan, math.inf, -math.inf):
        y[0, 0] = value
        total, count = angular_distance(x, y)
        assert (math.isnan(total), float(count)) == (True, 1.0)


def test_tokens_may_be_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 7, 4), torch.randn(3, 7, 4)
    whole = angular_distance(x, y)
    monkeypatch.setattr(angular, "_CHUNK_ELEMENTS", 9)
    assert [float(v) for v in angular_distance(x, y)] == pytest.approx([float(v) for v in whole], rel=1e-14)
