"""The dense CRF against sums over all pairs, and the lattice against these."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling.segmentation.dense_crf_bap import CRFSettings, mean_field
from modeling.segmentation.permutohedral_bap import PermutohedralLattice


def scene(height: int, width: int, *, noise: float = 8.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a noisy image of a disk (3, H, W), a blurred guess of it (2, H, W), and the disk (H, W)."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    disk = x.square() + y.square() < 0.36
    image = torch.where(
        disk, torch.tensor([200.0, 80, 60])[:, None, None], torch.tensor([60.0, 90, 160])[:, None, None]
    )
    image = (image + noise * torch.randn(3, height, width, generator=generator)).clamp(0, 255)
    guess = torch.exp(-2 * ((x - 0.15).square() + y.square()))
    return image.double(), torch.stack((1 - guess, guess)).clamp(0.05, 0.95).double(), disk


def by_pairs(unary: Tensor, image: Tensor, settings: CRFSettings) -> Tensor:
    """Return the marginals from matrices over all pairs of pixels."""
    labels, height, width = unary.shape
    place = torch.tensor([(x, y) for y in range(height) for x in range(width)], dtype=torch.float64)
    color = image.reshape(3, -1).T
    apart = (place[:, None] - place).square().sum(-1)
    colors_apart = (color[:, None] - color).square().sum(-1)
    matrices = [
        (settings.weight, torch.exp(-apart / (2 * settings.xy**2) - colors_apart / (2 * settings.rgb**2))),
        (settings.smooth_weight, torch.exp(-apart / (2 * settings.smooth_xy**2))),
    ]
    total = torch.zeros_like(apart)
    for weight, kernel in matrices:
        scale = kernel.sum(1).rsqrt()
        total += weight * scale[:, None] * kernel * scale
    q = unary.reshape(labels, -1) / unary.reshape(labels, -1).sum(0)
    for _ in range(settings.steps):
        scores = unary.reshape(labels, -1) * (q @ total).exp()
        q = scores / scores.sum(0)
    return q.reshape(unary.shape)


def test_exact_mean_field_equals_matrices_over_all_pairs() -> None:
    image, unary, _ = scene(12, 14)
    settings = CRFSettings(xy=5, rgb=12, smooth_xy=1.5)
    got, expected = mean_field(unary, image, settings, exact=True), by_pairs(unary, image, settings)
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)  # worst seen 1e-14; the lattice differs by 1e-2
    assert (mean_field(unary, image, settings) - expected).abs().max() > 1e-9


def test_without_kernels_the_unary_is_only_normalized() -> None:
    image, unary, _ = scene(12, 14)
    got = mean_field(unary, image, CRFSettings(weight=0, smooth_weight=0))
    torch.testing.assert_close(got, unary / unary.sum(0))


def test_the_lattice_agrees_with_the_exact_filter() -> None:
    """Equality is not to be had from a piecewise linear kernel; seen here: all labels, 4e-4 in the mean."""
    image, unary, _ = scene(40, 56)
    settings = CRFSettings(xy=14, rgb=6, smooth_xy=1)
    lattice, exact = (mean_field(unary, image, settings, exact=exact) for exact in (False, True))
    assert (lattice.argmax(0) == exact.argmax(0)).double().mean() > 0.99
    assert (lattice - exact).abs().mean() < 0.002


@pytest.mark.parametrize(("dimensions", "worst"), [(1, 0.012), (2, 0.014), (3, 0.015), (5, 0.02)])
def test_a_lattice_filters_like_a_gaussian(dimensions: int, worst: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 4 * torch.rand(1500, dimensions, generator=generator, dtype=torch.float64)
    values = torch.rand(1500, 2, generator=generator, dtype=torch.float64) + features[:, :1]
    kernel = (-torch.cdist(features, features).square() / 2).exp()
    expected = kernel @ values / kernel.sum(1, keepdim=True)
    lattice = PermutohedralLattice(features)
    got = lattice.blur(values) / lattice.blur(torch.ones(1500, 1, dtype=torch.float64))
    assert ((got - expected).abs().mean() / expected.abs().mean()).item() < worst
    spread = (expected - expected.mean(0)).abs().mean() / expected.abs().mean()
    assert spread > worst  # a filter that returned the mean of everything would not pass


def test_points_lie_in_their_simplex() -> None:
    """Barycentric weights are no less than 0, sum to 1, and combine the corners back to the point."""
    features = 10 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lattice = PermutohedralLattice(features)
    assert lattice.weights.min() >= 0
    torch.testing.assert_close(lattice.weights.sum(1), torch.ones(500, dtype=torch.float64))
    assert lattice.size <= 500 * 4
    # A constant is kept, and a function that is linear in the features up to the blur's symmetry: far from the edge.
    line = torch.linspace(0, 40, 4001, dtype=torch.float64)[:, None]
    along = PermutohedralLattice(line)
    blurred = along.blur(line) / along.blur(torch.ones_like(line))
    torch.testing.assert_close(blurred[1500:2500], line[1500:2500], atol=2e-3, rtol=0)


def test_the_blur_has_unit_variance() -> None:
    line = torch.linspace(-20, 20, 8001, dtype=torch.float64)[:, None]
    along = PermutohedralLattice(line)
    variances = []
    for place in range(3900, 4100, 10):  # the shape of the response depends on where in its simplex a point lies
        one = torch.zeros_like(line)
        one[place] = 1
        response = along.blur(one)[:, 0]
        mean = (response * line[:, 0]).sum() / response.sum()
        assert mean.item() == pytest.approx(line[place].item(), abs=1e-4)
        variances.append((response * (line[:, 0] - mean).square()).sum().item() / response.sum().item())
    assert sum(variances) / len(variances) == pytest.approx(1, abs=0.05)


def test_a_wrong_guess_moves_to_the_edges_of_the_image() -> None:
    image, unary, disk = scene(48, 64)

    def overlap(labels: Tensor) -> float:
        return ((labels == 1) & disk).sum().item() / ((labels == 1) | disk).sum().item()

    before = overlap(unary.argmax(0))
    after = overlap(mean_field(unary, image, CRFSettings(xy=16, rgb=15, smooth_xy=1)).argmax(0))
    assert after > before + 0.1
    assert after > 0.9


def test_sizes_that_differ_and_points_too_far_apart_are_refused() -> None:
    image, unary, _ = scene(12, 14)
    with pytest.raises(ValueError, match="differ"):
        mean_field(unary, image[:, 1:], CRFSettings())
    with pytest.raises(ValueError, match="too many to number"):
        PermutohedralLattice(1e6 * torch.eye(5, dtype=torch.float64))


def test_marginals_keep_type_and_sum_to_one() -> None:
    image, unary, _ = scene(20, 24)
    q = mean_field(F.pad(unary, (0, 0, 0, 0, 0, 1)).float(), image.float(), CRFSettings(xy=10))  # a label without unary
    assert q.dtype == torch.float32
    torch.testing.assert_close(q.sum(0), torch.ones(20, 24))
    assert q[2].max() < 1e-6
