"""The sampler of DKN: closed forms, parity with unfolded windows and grid_sample, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.sampling_dkn import place_taps, sample_and_sum

from .plain_filter import plain_sample_and_sum

Arguments = tuple[Tensor, Tensor, Tensor]
SAMPLINGS = pytest.mark.parametrize("sampling", ["centered", "compat"])


def filtered(target: Tensor, weights: Tensor, offsets: Tensor, **fields: Any) -> Tensor:
    config = DKNConfig(residual=False, **fields)  # of which the sampler knows nothing
    taps = place_taps(config.kernel_size, config.window_size, config.sampling)
    return sample_and_sum(target, weights, offsets, taps)


def random_arguments(
    *shape: int, kernel_size: int = 3, spread: float = 2.0, dtype: torch.dtype = torch.float64
) -> Arguments:
    batch, _, height, width = shape
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    taps = kernel_size**2
    return drawn(*shape), drawn(batch, taps, height, width), spread * drawn(batch, 2 * taps, height, width)


def no_offsets(target: Tensor, kernel_size: int = 3) -> Tensor:
    return target.new_zeros(len(target), 2 * kernel_size**2, *target.shape[-2:])


def even_weights(target: Tensor, kernel_size: int = 3) -> Tensor:
    taps = kernel_size**2
    return target.new_full((len(target), taps, *target.shape[-2:]), 1 / taps)


def ramp(height: int = 40, width: int = 44) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return (0.3 * columns - 0.7 * rows)[None, None]


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_no_offsets_and_even_weights_are_a_box_filter(kernel_size: int) -> None:
    target, _, _ = random_arguments(2, 2, 12, 15)
    found = filtered(
        target, even_weights(target, kernel_size), no_offsets(target, kernel_size), kernel_size=kernel_size
    )
    box = F.avg_pool2d(target, kernel_size, stride=1, padding=kernel_size // 2)  # divides by all, zeros included
    torch.testing.assert_close(found, box, atol=1e-14, rtol=0)  # measured: 3e-16


def test_whole_offsets_copy_pixels() -> None:
    """The middle tap alone, three to the right and two up: channels 2 * 4 and 2 * 4 + 1 are x and y."""
    target, weights, offsets = (torch.zeros_like(x) for x in random_arguments(1, 1, 12, 15))
    target.copy_(torch.rand(12, 15))
    weights[:, 4], offsets[:, 8], offsets[:, 9] = 1, 3, -2
    found = filtered(target, weights, offsets)
    assert (found[..., 2:, :-3] == target[..., :-2, 3:]).all()
    assert not found[..., :2, :].any()
    assert not found[..., -3:].any()


def test_the_first_index_of_a_tap_runs_along_x() -> None:
    target, weights, offsets = random_arguments(1, 1, 12, 15)
    weights, offsets = torch.zeros_like(weights), torch.zeros_like(offsets)
    weights[:, 3 * 2 + 1] = 1  # i = 2, j = 1: one to the right
    assert (filtered(target, weights, offsets)[..., :-1] == target[..., 1:]).all()


@pytest.mark.parametrize("beyond", [4.0, 8.0, 1e4, float("inf"), -8.0, -1e4, float("-inf")])
def test_a_sample_beyond_the_window_is_zero(beyond: float) -> None:
    target, weights, offsets = random_arguments(1, 1, 20, 24)
    target = target.abs() + 1
    offsets = torch.zeros_like(offsets)
    offsets[:, 1::2] = beyond  # window 5: all three rows of taps leave it at 4
    found = filtered(target, weights, offsets, window_size=5)
    assert (found == 0).all()
    assert (filtered(target, weights, torch.zeros_like(offsets), window_size=5) != 0).all()


@SAMPLINGS
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_huge_offsets_give_finite_gradients(sampling: str, offset: float) -> None:
    arguments = [x.requires_grad_() for x in random_arguments(1, 2, 9, 9, dtype=torch.float32)]
    with torch.no_grad():
        arguments[2].fill_(offset)
    found = filtered(*arguments, sampling=sampling)
    for gradient in (found, *torch.autograd.grad(found.sum(), arguments)):
        assert (gradient == 0).all()


def test_offsets_that_are_no_numbers_spoil_their_own_pixel_only() -> None:
    target, weights, offsets = random_arguments(1, 1, 9, 9)
    offsets[0, 5, 4, 4] = float("nan")
    found = filtered(target, weights, offsets)
    assert found.isnan().sum() == 1
    assert found[0, 0, 4, 4].isnan()


@pytest.mark.parametrize(("sampling", "displaced"), [("centered", 0.0), ("compat", 7 / 15)])
def test_a_ramp_is_displaced_by_what_the_sampling_says(sampling: str, displaced: float) -> None:
    """Compat reads at (7 + i) 14 / 15 - 7 for i = 0, 1, 2, whose mean is 7 / 15: the known 0.47 pixels."""
    target = ramp()
    found = filtered(target, even_weights(target), no_offsets(target), sampling=sampling)
    expected = target + displaced * (0.3 - 0.7)
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-12, rtol=0)  # measured: 7e-15


@SAMPLINGS
def test_the_gradient_of_a_ramp_with_respect_to_offsets_is_its_slope(sampling: str) -> None:
    target = ramp(20, 20)
    offsets = (0.9 * torch.rand(1, 18, 20, 20, dtype=torch.float64)).requires_grad_()
    found = filtered(target, even_weights(target), offsets, sampling=sampling)
    (gradient,) = torch.autograd.grad(found[..., 8:12, 8:12].sum(), offsets)
    step = (14 / 15 if sampling == "compat" else 1) / 9
    torch.testing.assert_close(gradient[:, ::2, 8:12, 8:12], torch.full((1, 9, 4, 4), 0.3 * step).double())
    torch.testing.assert_close(gradient[:, 1::2, 8:12, 8:12], torch.full((1, 9, 4, 4), -0.7 * step).double())
    assert not gradient[..., :8, :].any()


@SAMPLINGS
def test_fixed_kernels_that_sum_to_one_keep_affine_maps(sampling: str) -> None:
    target, weights, offsets = random_arguments(1, 1, 40, 40, spread=1.0)
    weights = weights.softmax(dim=1)
    inside = (..., slice(9, -9), slice(9, -9))
    offsets = offsets.clamp(-4, 4)  # inside the window
    found = filtered(3 * target + 5, weights, offsets, sampling=sampling)[inside]
    expected = (3 * filtered(target, weights, offsets, sampling=sampling) + 5)[inside]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)  # measured: 3e-15


CASES = pytest.mark.parametrize(
    ("shape", "kernel_size", "window_size", "spread"),
    [
        ((2, 3, 13, 17), 3, 15, 2.0),
        ((1, 1, 11, 9), 5, 7, 3.0),  # many beyond the window
        ((1, 2, 20, 20), 3, 15, 8.0),
        ((1, 1, 1, 1), 3, 15, 3.0),
        ((1, 2, 1, 9), 1, 3, 1.0),
        ((1, 1, 5, 3), 3, 3, 1.0),
    ],
    ids=str,
)


@SAMPLINGS
@CASES
def test_samples_are_those_of_unfolded_windows(
    sampling: str, shape: tuple[int, ...], kernel_size: int, window_size: int, spread: float
) -> None:
    """Values and gradients, in double: the two differ by rounding alone."""
    fields: Any = {"sampling": sampling, "kernel_size": kernel_size, "window_size": window_size}
    arguments = [x.requires_grad_() for x in random_arguments(*shape, kernel_size=kernel_size, spread=spread)]
    config = DKNConfig(residual=False, **fields)
    found, plain = filtered(*arguments, **fields), plain_sample_and_sum(*arguments, config=config)
    torch.testing.assert_close(found, plain, atol=1e-12, rtol=0)  # measured: 2e-14
    grad = torch.rand_like(found)
    gradients = zip(*(torch.autograd.grad(x, arguments, grad) for x in (found, plain)), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)  # measured: 2e-14


@SAMPLINGS
def test_fp32_stays_near_double_far_from_the_first_pixel(sampling: str) -> None:
    """Coordinates are relative to their pixel: at column 600 absolute ones would be 6e-5 apart."""
    target, weights, offsets = random_arguments(1, 1, 4, 640)
    found = filtered(target.float(), weights.float(), offsets.float(), sampling=sampling)
    exact = filtered(target, weights, offsets, sampling=sampling)
    torch.testing.assert_close(found.double(), exact, atol=2e-5, rtol=0)  # measured: 2e-6; with absolute ones 2e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_through_fp32(dtype: torch.dtype) -> None:
    arguments = random_arguments(1, 1, 12, 12, dtype=dtype)
    found = filtered(*arguments)
    assert found.dtype == dtype
    torch.testing.assert_close(found, filtered(*(x.float() for x in arguments)).to(dtype), atol=0, rtol=0)


@SAMPLINGS
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=["first", "second"])
def test_gradients_are_those_of_finite_differences(sampling: Any, check: Callable[..., bool]) -> None:
    """Away from whole coordinates, where bilinear interpolation has a kink; inside, fading out and beyond."""
    target, weights, offsets = random_arguments(1, 2, 3, 3)
    taps = place_taps(3, 5, sampling)
    relative = taps.origins(offsets).view(1, 18, 1, 1) + taps.scale * offsets
    kinked = (relative - relative.round()).abs() < 0.1
    assert kinked.any()
    arguments = [x.requires_grad_() for x in (target, weights, offsets + kinked * 0.2 / taps.scale)]
    assert check(lambda *given: filtered(*given, sampling=sampling, window_size=5), arguments, fast_mode=True)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_only_the_gradients_that_are_asked_for_are_computed(wanted: tuple[int, ...]) -> None:
    arguments = random_arguments(1, 2, 6, 7)
    everything = [x.clone().requires_grad_() for x in arguments]
    expected = torch.autograd.grad(filtered(*everything).sum(), everything)
    some = [x.clone().requires_grad_(index in wanted) for index, x in enumerate(arguments)]
    found = torch.autograd.grad(filtered(*some).sum(), [some[index] for index in wanted])
    for index, gradient in zip(wanted, found, strict=True):
        assert (gradient == expected[index]).all()


def test_it_runs_under_deterministic_algorithms() -> None:
    arguments = [x.requires_grad_() for x in random_arguments(2, 2, 8, 8, dtype=torch.float32)]
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(filtered(*arguments).sum(), arguments) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(first, second, strict=True):
        assert (one == other).all()


def test_nothing_as_large_as_all_samples_lives_between_the_passes() -> None:
    target, weights, offsets = (x.requires_grad_() for x in random_arguments(1, 1, 8, 8))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        filtered(target, weights, offsets)
    assert {x.data_ptr() for x in kept} <= {x.data_ptr() for x in (target, weights, offsets)}


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor has that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(output):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output


def test_a_tap_at_a_time_is_all_that_memory_is_taken_for() -> None:
    """Unfolded windows are 225 values per pixel; here nothing is larger than the arguments."""
    target, weights, offsets = random_arguments(1, 1, 50, 60)
    pixels = target.numel()
    with LargestTensor() as plain:
        plain_sample_and_sum(target, weights, offsets, DKNConfig())
    assert plain.elements == 225 * pixels
    with LargestTensor() as forward:
        found = filtered(target, weights, offsets.requires_grad_())
    assert forward.elements == offsets.numel()  # they are seen in pairs, but not copied
    with LargestTensor() as backward:
        torch.autograd.grad(found.sum(), offsets)
    assert backward.elements == offsets.numel()  # their gradient


@pytest.mark.gpu
@SAMPLINGS
def test_a_gpu_samples_as_a_cpu_does(sampling: str) -> None:
    arguments = [x.requires_grad_() for x in random_arguments(2, 2, 30, 40)]
    on_gpu = [x.detach().cuda().requires_grad_() for x in arguments]
    found, expected = filtered(*on_gpu, sampling=sampling), filtered(*arguments, sampling=sampling)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-12, rtol=0)
    gradients = zip(
        torch.autograd.grad(found.sum(), on_gpu), torch.autograd.grad(expected.sum(), arguments), strict=True
    )
    for ours, theirs in gradients:
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-12, rtol=0)
