"""Statistics in parts are the statistics of the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from analysis.measure.moments import FP16_MAX, Moments, exponent_histogram, measure, merge


def described(row: Tensor) -> dict[str, float]:
    return Moments(*row.tolist()).described()


def reference(values: Tensor) -> dict[str, float]:
    values = values.double()
    magnitudes = values.abs().reshape(-1, values.shape[-1])
    lower_median = magnitudes.sort(dim=1).values[:, (magnitudes.shape[1] + 1) // 2 - 1]
    return {
        "numel": values.numel(),
        "variance": float(values.var(correction=0)),
        "mean_abs": float(magnitudes.mean()),
        "max_abs": float(magnitudes.max()),
        "rms": float(values.square().mean().sqrt()),
        "fp16_overflow_share": float((magnitudes > FP16_MAX).double().mean()),
        "top1_over_median": float((magnitudes.amax(dim=1) / lower_median).max()),
    }


def random_values(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    torch.manual_seed(seed)
    values = torch.randn(shape)
    match kind:
        case "far from zero":
            return values + 1000
        case "tokens of many sizes":
            return values * 10 ** torch.linspace(-6, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
        case "massive":
            values[..., 1] = 1e5 * values[..., 1]
            return values
        case "all alike":
            return values.sign()
        case _:
            return values


KINDS = ["normal", "far from zero", "tokens of many sizes", "massive", "all alike"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 33), (3, 5, 8), (64, 7), (1, 2)])
def test_figures_equal_fp64(kind: str, shape: tuple[int, ...]) -> None:
    # Worst case measured: 1.6e-7 relative.
    for seed in range(5):
        values = random_values(kind, shape, seed)
        assert described(measure(values)) == pytest.approx(reference(values), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_merge_to_the_whole_in_any_cut(kind: str) -> None:
    # Worst case measured: 1.6e-7 relative; the mean of the parts' variances would be off by 5 % and more.
    values = random_values(kind, (60, 16), 0)
    for cut in ([60], [1, 59], [20, 20, 20], [7, 0, 13, 40]):
        whole = merge(measure(part) for part in values.split(cut) if len(part))
        assert described(whole) == pytest.approx(reference(values), rel=1e-6)


def test_nothing_changes_nothing() -> None:
    row = measure(torch.randn(4, 8))
    nothing = torch.zeros_like(row)
    assert torch.equal(merge((nothing, row)), row)
    assert torch.equal(merge((row, nothing)), row)
    assert described(nothing) == {"numel": 0}


def test_rows_merge_beside_each_other() -> None:
    first, second = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8)
    matrices = [
        torch.stack([torch.stack([measure(values) for values in line]) for line in part]) for part in (first, second)
    ]
    joined = merge(matrices)
    assert joined.shape == (2, 3, 7)
    expected = reference(torch.cat((first, second), dim=2)[1, 2])
    assert described(joined[1, 2]) == pytest.approx(expected, rel=1e-6)


def test_bf16_is_measured_in_fp32() -> None:
    values = torch.randn(64, 128).bfloat16()
    assert described(measure(values)) == pytest.approx(reference(values), rel=1e-6)


def test_features_may_lie_along_any_dimension() -> None:
    values = torch.randn(2, 5, 4, 3)  # channels first
    assert described(measure(values, feature_dim=1)) == pytest.approx(reference(values.movedim(1, -1)), rel=1e-6)


def test_overflow_is_counted_beyond_the_fp16_range_only() -> None:
    values = torch.tensor([[65504.0, -65504.0, 65505.0, math.inf]])
    assert described(measure(values))["fp16_overflow_share"] == 0.5
    assert described(measure(values[:, :2]))["fp16_overflow_share"] == 0.0


def test_what_is_not_finite_shows() -> None:
    found = described(measure(torch.tensor([[1.0, math.nan], [1.0, 2.0]])))
    assert math.isnan(found["variance"])
    assert math.isnan(found["top1_over_median"])
    assert found["fp16_overflow_share"] == 0.25


def test_zeros_have_no_ratio_and_sparse_tokens_an_infinite_one() -> None:
    assert described(measure(torch.zeros(3, 4)))["top1_over_median"] == 0.0
    sparse = torch.tensor([[0.0, 0.0, 0.0, 5.0], [1.0, 1.0, 1.0, 1.0]])
    assert described(measure(sparse))["top1_over_median"] == math.inf


def test_the_search_finds_the_largest_ratio_where_its_first_guess_fails() -> None:
    """One token has the largest top1 / mean, another the largest top1 / median."""
    guess = torch.tensor([100.0] + [10.0] * 99).repeat(8, 1)
    largest = torch.tensor([50.0] * 49 + [0.1] * 51).view(1, -1)
    found = described(measure(torch.cat((guess, largest))))["top1_over_median"]
    assert found == pytest.approx(500.0)


def test_exponents_are_counted_and_add_up() -> None:
    values = torch.tensor([0.0, 1.0, -1.5, 2.0, 0.25, math.inf, math.nan])
    counts = exponent_histogram(values)
    assert counts.sum() == len(values)
    assert {index: int(count) for index, count in enumerate(counts) if count} == {0: 1, 125: 1, 127: 2, 128: 1, 255: 2}
    parts = exponent_histogram(values[:3]) + exponent_histogram(values[3:])
    assert torch.equal(counts, parts)
