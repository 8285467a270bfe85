"""The networks of DKN and FDKN: sum rules, dense evaluation against isolated patches, equivariance, any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.joint_filter import kernels_dkn
from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.kernels_dkn import split_phases, stitch_phases
from modeling.joint_filter.modeling_dkn import DKNModel

from .plain_filter import on_cells, plain_forward, products, random_filter, random_pair, sixteen_passes, strided

ARCHITECTURES = pytest.mark.parametrize("architecture", ["fdkn", "dkn"])
SIZES = [(1, 1), (5, 3), (3, 70), (63, 65), (62, 66), (64, 64)]


def interior(x: Tensor, border: int) -> Tensor:
    return x[..., border:-border, border:-border]


@pytest.mark.parametrize(("architecture", "count"), [("fdkn", 693_856), ("dkn", 1_158_070)])
def test_parameters_are_as_many_as_the_authors(architecture: str, count: int) -> None:
    assert random_filter(architecture=architecture).num_parameters() == count


def test_operations_are_counted_by_convolutions() -> None:
    """FDKN by hand: a branch has 9 (16 32 + 32 32 + 32 64 + 64 64 + 64 128 + 128 128) + 128 432 products a cell."""
    by_hand = 9 * (16 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 128 * 432
    assert random_filter().flops_per_pixel() == 2 * 2 * by_hand / 16
    assert random_filter(guidance=False).flops_per_pixel() == 2 * by_hand / 16
    dkn = random_filter(architecture="dkn")
    assert dkn.flops_per_pixel() == 2 * sum(p.numel() for p in dkn.parameters() if p.ndim == 4)


@ARCHITECTURES
@pytest.mark.parametrize(("residual", "total"), [(True, 0.0), (False, 1.0)])
def test_weights_sum_to_zero_or_one(architecture: str, residual: bool, total: float) -> None:
    model = random_filter(architecture=architecture, residual=residual)
    with torch.no_grad():
        weights = model(*random_pair(20, 24)).weights
    sums = weights.sum(dim=1)
    torch.testing.assert_close(sums, torch.full_like(sums, total), atol=2e-6, rtol=0)  # measured: 5e-7
    assert weights.std() > 1e-3


@ARCHITECTURES
@pytest.mark.parametrize("guidance", [True, False])
def test_raw_weights_lie_between_zero_and_one(architecture: str, guidance: bool) -> None:
    model = random_filter(architecture=architecture, guidance=guidance)
    with torch.no_grad():
        raw, offsets = model.kernels(*random_pair(20, 24))
    assert raw.min() > 0
    assert raw.max() < 1
    assert offsets.abs().max() > 1
    assert raw.std() > 1e-3


def test_weights_that_vanish_together_are_no_nan() -> None:
    model = random_filter(residual=False)
    with torch.no_grad():
        model.state_dict()["kernels.target_branch.weight_head.bias"].fill_(-200)
        assert model(*random_pair(8, 8)).output.isfinite().all()


@ARCHITECTURES
@pytest.mark.parametrize("residual", [True, False])
def test_a_constant_target_stays_constant_inside(architecture: str, residual: bool) -> None:
    model = random_filter(architecture=architecture, residual=residual, window_size=7)
    guidance, _ = random_pair(28, 32)
    with torch.no_grad():
        found = model(guidance, torch.full((1, 1, 28, 32), 0.37))
    offsets = found.offsets[..., 4:-4, 4:-4]
    reached = (offsets.abs() < 2).all(dim=1)  # a sample beyond the window is zero, not 0.37
    assert reached.any()
    inside = interior(found.output, 4)[:, 0][reached]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.37), atol=1e-6, rtol=0)  # measured: 2e-7
    assert (found.output - 0.37).abs().max() > 1e-3  # the dark seam along the edges


def test_the_authors_see_luma_only() -> None:
    """FDKN takes three channels as 0.299 R + 0.587 G + 0.114 B; DKN takes them as they are."""
    guidance, target = random_pair(16, 16)
    grey = (0.299 * guidance[:, :1] + 0.587 * guidance[:, 1:2] + 0.114 * guidance[:, 2:]).expand(-1, 3, -1, -1)
    with torch.no_grad():
        fast, dense = (random_filter(architecture=name) for name in ("fdkn", "dkn"))
        torch.testing.assert_close(fast(grey, target).output, fast(guidance, target).output, atol=5e-6, rtol=0)
        assert (dense(grey, target).output - dense(guidance, target).output).abs().max() > 1e-4
        swapped = (fast(guidance.flip(1), target).output - fast(guidance, target).output).abs().max()
        assert swapped > 1e-4  # blue and red are not alike


@ARCHITECTURES
def test_the_guidance_is_not_looked_at_where_the_target_decides_alone(architecture: str) -> None:
    model = random_filter(architecture=architecture, guidance=False)
    guidance, target = random_pair(12, 12)
    with torch.no_grad():
        assert (model(None, target).output == model(guidance, target).output).all()
    assert not [name for name in model.state_dict() if "guidance" in name]


def test_dense_kernels_are_those_of_isolated_patches() -> None:
    """Each pixel's 51 x 51 patch alone, with the strides as they are drawn, zeros beyond the image."""
    model = random_filter(architecture="dkn")
    guidance, target = random_pair(30, 27)
    with torch.no_grad():
        raw, offsets = model.kernels(guidance, target)
        for row, column in [(0, 0), (1, 2), (14, 13), (29, 26), (17, 3)]:
            patches = (F.pad(x, (25,) * 4)[..., row : row + 51, column : column + 51] for x in (guidance, target))
            branches: Any = (model.kernels.guidance_branch, model.kernels.target_branch)
            found = products(tuple(strided(branch, x) for branch, x in zip(branches, patches, strict=True)))
            # measured: 1e-7 and 2e-6
            torch.testing.assert_close(raw[..., row, column], found[0][..., 0, 0], atol=2e-6, rtol=0)
            torch.testing.assert_close(offsets[..., row, column], found[1][..., 0, 0], atol=5e-5, rtol=0)
        assert raw.std() > 1e-3


def test_dense_kernels_are_those_of_sixteen_shifted_passes() -> None:
    model = random_filter(architecture="dkn")
    with torch.no_grad():
        pair = random_pair(32, 40, batch=2)
        (raw, offsets), (plain_raw, plain_offsets) = model.kernels(*pair), sixteen_passes(model, *pair)
    torch.testing.assert_close(raw, plain_raw, atol=5e-6, rtol=0)  # measured: 7e-7
    torch.testing.assert_close(offsets, plain_offsets, atol=5e-5, rtol=0)  # measured: 8e-6; the largest is 6


def test_gradients_are_those_of_sixteen_shifted_passes() -> None:
    model = random_filter(architecture="dkn").double()
    pair = [x.double() for x in random_pair(12, 16)]
    names, parameters = zip(*model.named_parameters(), strict=True)
    plain = torch.autograd.grad(plain_forward(model, *pair).square().sum(), parameters)
    ours = torch.autograd.grad(model(*pair).output.square().sum(), parameters)
    for name, found, expected in zip(names, ours, plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8, msg=name)  # measured: 1e-14


@ARCHITECTURES
def test_the_whole_filter_is_the_plain_one(architecture: str) -> None:
    model = random_filter(architecture=architecture, sampling="compat")
    pair = random_pair(32, 40, batch=2)
    with torch.no_grad():
        found, plain = model(*pair).output, plain_forward(model, *pair)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)  # measured: 1e-6


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In double, that sums in another order do not hide an error: what a misplaced halo does is not."""
    model = random_filter(architecture="dkn").double()
    pair = [x.double() for x in random_pair(37, 50)]
    with torch.enable_grad():
        whole = [x.detach() for x in model.kernels(*pair)]
    monkeypatch.setattr(kernels_dkn, "TILE", 16)
    with torch.no_grad():
        tiled = model.kernels(*pair)
    for found, expected in zip(tiled, whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)  # measured: 1e-14


@pytest.mark.parametrize(("architecture", "shift", "same"), [("dkn", 1, True), ("fdkn", 4, True), ("fdkn", 1, False)])
def test_the_filter_moves_with_the_image(architecture: str, shift: int, same: bool) -> None:
    """Inside: DKN by any pixel, FDKN by cells of 4 x 4 only."""
    model = random_filter(architecture=architecture)
    height, width = 88, 84
    guidance, target = random_pair(height + shift, width + shift)
    with torch.no_grad():
        one = model(guidance[..., :height, :width], target[..., :height, :width]).output
        other = model(guidance[..., shift:, shift:], target[..., shift:, shift:]).output
    border = 36  # kernels see 28 pixels, samples 8 more
    found = interior(one[..., shift:, shift:] - other[..., : height - shift, : width - shift], border).abs().max()
    assert (found < 5e-6) if same else (found > 1e-2)  # measured: 0, 0; 0.3


@ARCHITECTURES
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_is_filtered(architecture: str, height: int, width: int) -> None:
    """DKN's pixels are those of the image in a larger frame of zeros; FDKN's those of it with its edge repeated."""
    model = random_filter(architecture=architecture)
    pair = random_pair(height, width)
    right, bottom = -width % 4, -height % 4
    mode = "replicate" if architecture == "fdkn" else "constant"
    larger = [F.pad(x, (0, right, 0, bottom), mode=mode) for x in pair]
    with torch.no_grad():
        found = model(*pair)
        predict = on_cells if architecture == "fdkn" else sixteen_passes
        raw, offsets = predict(model, *larger)
    assert found.output.shape == (1, 1, height, width)
    expected = (raw - raw.mean(dim=1, keepdim=True))[..., :height, :width]
    torch.testing.assert_close(found.weights, expected, atol=5e-6, rtol=0)  # measured: 6e-7
    torch.testing.assert_close(found.offsets, offsets[..., :height, :width], atol=5e-5, rtol=0)  # measured: 8e-6


def test_phases_are_stitched_as_they_were_split() -> None:
    image = torch.rand(3, 2, 8, 12)
    phases = split_phases(split_phases(image))
    assert phases.shape == (48, 2, 2, 3)
    assert (stitch_phases(phases) == image).all()
    assert (phases[0] == image[0, :, ::4, ::4]).all()


@ARCHITECTURES
def test_images_of_a_batch_do_not_see_each_other(architecture: str) -> None:
    """In evaluation, where BatchNorm is fixed; in training they do."""
    model = random_filter(architecture=architecture)
    guidance, target = random_pair(16, 20, batch=3)
    with torch.no_grad():
        together = model(guidance, target).output
        for index in range(3):
            alone = model(guidance[index : index + 1], target[index : index + 1]).output
            torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=0)  # measured: 7e-7
        model.train()
        first = model(guidance[:1], target[:1]).output[0]
        assert (model(guidance, target).output[0] - first).abs().max() > 1e-4


@ARCHITECTURES
def test_batch_normalization_sees_a_step_once(architecture: str) -> None:
    model = random_filter(architecture=architecture).train()
    model(*random_pair(12, 12))
    counters = [value.item() for name, value in model.state_dict().items() if "num_batches" in name]
    assert counters == [1] * 6  # three layers of each branch


@ARCHITECTURES
def test_channels_of_a_target_share_its_kernels(architecture: str) -> None:
    model = random_filter(architecture=architecture, target_channels=2, guidance_channels=5)
    with torch.no_grad():
        found = model(torch.rand(1, 5, 9, 10), torch.rand(1, 2, 9, 10))
    assert found.output.shape == (1, 2, 9, 10)
    assert found.weights.shape == (1, 9, 9, 10)


@ARCHITECTURES
def test_kernels_of_other_sizes(architecture: str) -> None:
    model = random_filter(architecture=architecture, kernel_size=5, window_size=9)
    with torch.no_grad():
        found = model(*random_pair(9, 10))
    assert found.weights.shape == (1, 25, 9, 10)
    assert found.offsets.shape == (1, 50, 9, 10)


@ARCHITECTURES
def test_every_parameter_learns(architecture: str) -> None:
    model = random_filter(architecture=architecture).train()
    guidance, target = random_pair(24, 24)
    (model(guidance, target).output - torch.rand(1, 1, 24, 24)).abs().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "norm" in name or name.endswith("weight"):  # a bias before BatchNorm has no effect
            assert parameter.grad.any(), name


def test_weights_are_drawn_as_torch_draws_them() -> None:
    """Uniform within 1 / sqrt(fan in), biases too; transformers' own default is a normal distribution, zero biases."""
    torch.manual_seed(3)
    model = DKNModel(DKNConfig())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for drawn in (module.weight, module.bias):
                assert drawn is not None
                assert drawn.abs().max() <= bound
                assert drawn.abs().max() > 0.8 * bound
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.running_var == 1).all()
    torch.manual_seed(3)
    again = DKNModel(DKNConfig())
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("guidance", "target", "message"),
    [
        ((1, 3, 8, 8), (1, 3, 8, 8), r"target: \(1, 3, 8, 8\) given; this model takes \(batch, 1, height, width\)"),
        ((1, 1, 8, 8), (1, 1, 8, 8), r"guidance: \(1, 1, 8, 8\) given; this model takes \(batch, 3, height, width\)"),
        (None, (1, 1, 8, 8), "guidance: None given"),
        ((3, 8, 8), (1, 1, 8, 8), r"guidance: \(3, 8, 8\) given"),
        ((1, 3, 8, 8), (1, 1, 4, 4), "up-sample the target"),
        ((2, 3, 8, 8), (1, 1, 8, 8), "does not match target"),
        ((1, 3, 0, 8), (1, 1, 0, 8), r"target: \(1, 1, 0, 8\) given"),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused(guidance: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_filter()(None if guidance is None else torch.rand(guidance), torch.rand(target))
