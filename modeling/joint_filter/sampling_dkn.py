"""The filter itself: for each pixel, a weighted sum of samples at learned offsets.

Shapes: B batch, C channels, H height, W width, K kernel size, S window size, R = S // 2 how far a kernel reaches,
T taps that are computed at a time.

A sample between pixels is interpolated from four; pixels outside the window or the image are zeros. The image is
padded by the reach. A coordinate beyond the window is moved back to its edge and the sample fades linearly,
reaching zero at a distance of one pixel. This equals interpolation towards zeros, without a mask for each corner.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Taps(NamedTuple):
    """Where a kernel reads, relative to its pixel: tap (i, j) at start + scale (i + dx) and start + scale (j + dy)."""

    kernel_size: int
    reach: int  # pixels from the middle of the window to its edge
    start: float
    scale: float

    def origins(self, like: Tensor) -> Tensor:
        """Return x and y of each tap at offset zero, (K * K, 2, 1, 1); the first index runs along x."""
        along = self.start + self.scale * torch.arange(self.kernel_size, dtype=like.dtype, device=like.device)
        return torch.cartesian_prod(along, along)[..., None, None]


def place_taps(kernel_size: int, window_size: int, sampling: Literal["centered", "compat"]) -> Taps:
    """Return the taps of a sampling.

    `centered` has them around the pixel. `compat` is what the authors' weights were trained with: the first tap stands
    on the middle R of the window, and what stands at p of it is read at p (S - 1) / S (grid_sample with align_corners
    on coordinates that were divided by S): displaced by 0.47 pixels to the lower right where K is 3 and S 15.
    """
    reach = window_size // 2
    if sampling == "centered":
        return Taps(kernel_size, reach, start=-float(kernel_size // 2), scale=1.0)
    scale = (window_size - 1) / window_size
    return Taps(kernel_size, reach, start=scale * reach - reach, scale=scale)


def sample_and_sum(target: Tensor, weights: Tensor, offsets: Tensor, taps: Taps) -> Tensor:
    """Return at each pixel p the sum over taps q of weights(q, p) target(p + q + offsets(q, p)).

    Equation 1 of Kim, Ponce and Ham (IJCV 2021) with bilinear samples. Differentiable in all three, repeatedly too. The
    backward pass reads the samples again, so nothing lives between the passes but the arguments. A sample whose offset
    is infinite is 0.

    Args:
        target: (B, C, H, W).
        weights: (B, K * K, H, W); tap (i, j) is channel K i + j, and i runs along x.
        offsets: (B, 2 * K * K, H, W) in pixels; channel 2 (K i + j) is x, the next is y.
        taps: Where they stand at offset zero.

    Returns:
        (B, C, H, W) in the target's dtype. Positions are computed in fp32 at least.
    """
    dtype = torch.promote_types(target.dtype, torch.float32)
    summed = _SampleAndSum.apply(target.to(dtype), weights.to(dtype), offsets.to(dtype).unflatten(1, (-1, 2)), taps)
    return summed.to(target.dtype)


class _SampleAndSum(torch.autograd.Function):
    """One tap after the other, so that the samples never exist all at a time; offsets are (B, K * K, 2, H, W)."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, weights: Tensor, offsets: Tensor, taps: Taps) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(target, weights, offsets)
        ctx.taps = taps
        image, origins = _Image(target, taps.reach), taps.origins(target)
        summed = torch.zeros_like(target, memory_format=torch.contiguous_format)
        for part in _parts(len(origins)):
            place = image.find(torch.add(origins[part], offsets[:, part], alpha=taps.scale))
            samples = image.corners(place).value(place)  # (B, C, T, H, W)
            for tap, weight in enumerate(place.faded(weights[:, part]).unbind(1)):
                summed = torch.addcmul(summed, samples[:, :, tap], weight[:, None])
        return summed

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        target, weights, offsets = ctx.saved_tensors
        needs_target, needs_weights, needs_offsets, _ = ctx.needs_input_grad
        image, origins = _Image(target, ctx.taps.reach), ctx.taps.origins(target)
        grad_target = torch.zeros_like(image.flat) if needs_target else None
        grad_weights, grad_offsets = [], []
        for part in _parts(len(origins)):
            place = image.find(torch.add(origins[part], offsets[:, part], alpha=ctx.taps.scale))
            if grad_target is not None:
                grad_samples = grad_output[:, :, None] * place.faded(weights[:, part])[:, None]
                grad_target = image.scatter(grad_target, grad_samples, place)
            if not (needs_weights or needs_offsets):
                continue
            corners = image.corners(place)
            along = _over_channels(grad_output, corners.value(place))  # (B, T, H, W)
            grad_weights.append(place.faded(along))
            if needs_offsets:
                slopes = [_over_channels(grad_output, slope) for slope in corners.slopes(place)]
                grad_offsets.append(place.slope(along, slopes, ctx.taps.scale * weights[:, part]))
        return (
            None if grad_target is None else image.unpad(grad_target),
            torch.cat(grad_weights, dim=1) if needs_weights else None,
            torch.cat(grad_offsets, dim=1) if needs_offsets else None,
            None,
        )


def _parts(number: int) -> list[slice]:
    """Take all taps at once when compiling: the samples are not stored then, and the graph is nine times smaller."""
    size = number if torch.compiler.is_compiling() else 1
    return [slice(start, start + size) for start in range(0, number, size)]


def _over_channels(grad_output: Tensor, samples: Tensor) -> Tensor:
    """Return (B, T, H, W): the products with (B, C, T, H, W), summed over the channels, which share a kernel."""
    products = grad_output[:, :, None] * samples
    return products[:, 0] if products.shape[1] == 1 else products.sum(dim=1)


class _Place(NamedTuple):
    """Where some taps of every pixel read; along x and y where there are two."""

    first: Tensor  # (B, 1, T * H * W) int64: the upper left of its four pixels, in the flat image
    fraction: Tensor  # (B, T, 2, H, W): how far from it to the right and down, below 1
    excess: Tensor  # (B, T, 2, H, W): how far beyond the window, 0 inside
    fade: Tensor  # (B, T, 2, H, W): what is left of a sample for that, 1 inside

    def faded(self, weights: Tensor) -> Tensor:
        """Return (B, T, H, W) weights by what is left of their samples."""
        return weights * self.fade[:, :, 0] * self.fade[:, :, 1]

    def slope(self, along: Tensor, slopes: list[Tensor], weights: Tensor) -> Tensor:
        """Return what moving a sample changes, (B, T, 2, H, W), given its value and derivatives inside the window."""
        fading = torch.where(self.fade > 0, -self.excess.sign(), 0)
        moved = torch.where(self.excess == 0, torch.stack(slopes, dim=2), fading * along[:, :, None])
        return moved * (weights[:, :, None] * self.fade.flip(2))


class _Corners(NamedTuple):
    """The four pixels around a sample, each (B, C, T, H, W)."""

    upper_left: Tensor
    upper_right: Tensor
    lower_left: Tensor
    lower_right: Tensor

    def value(self, place: _Place) -> Tensor:
        x, y = place.fraction[:, None].unbind(3)
        upper = torch.lerp(self.upper_left, self.upper_right, x)
        return torch.lerp(upper, torch.lerp(self.lower_left, self.lower_right, x), y)

    def slopes(self, place: _Place) -> tuple[Tensor, Tensor]:
        """Return the derivatives of the value along x and y."""
        x, y = place.fraction[:, None].unbind(3)
        along_x = torch.lerp(self.upper_right - self.upper_left, self.lower_right - self.lower_left, y)
        return along_x, torch.lerp(self.lower_left - self.upper_left, self.lower_right - self.upper_right, x)


class _Image:
    """A batch of images, padded with zeros so that all that a kernel can reach exists, and flat for reading."""

    def __init__(self, target: Tensor, reach: int) -> None:
        batch, channels, self.height, self.width = target.shape
        self.reach, self.stride = reach, self.width + 2 * reach + 1
        self.flat = F.pad(target, (reach, reach + 1, reach, reach + 1)).reshape(batch, channels, -1)
        rows = torch.arange(reach, reach + self.height, device=target.device)[:, None] * self.stride
        self.pixels = rows + torch.arange(reach, reach + self.width, device=target.device)  # (H, W), in the flat image
        self.steps = (0, 1, self.stride, self.stride + 1)  # to the pixels of _Corners
        self.length = self.flat.shape[-1] - self.steps[-1]

    def find(self, relative: Tensor) -> _Place:
        """Return what lies around (B, T, 2, H, W) coordinates, relative to their pixels for the sake of precision."""
        moved = relative.clamp(-self.reach, self.reach)
        cell = moved.floor()
        steps = torch.add(cell[:, :, 0], cell[:, :, 1], alpha=self.stride)  # whole numbers, exact in fp32 up to 2^24
        # A coordinate that is no number makes no index: clamp what comes of it, so that only its sample is none.
        upper_left = (self.pixels + steps.long()).clamp(0, self.length - 1)
        excess = relative - moved
        return _Place(upper_left.flatten(1)[:, None], moved - cell, excess, (1 - excess.abs()).clamp(min=0))

    def corners(self, place: _Place) -> _Corners:
        """Read the four pixels of each place."""
        index = place.first.expand(-1, self.flat.shape[1], -1)
        pixels = (self.flat.narrow(-1, step, self.length).gather(-1, index) for step in self.steps)
        return _Corners(*(pixel.unflatten(-1, (-1, self.height, self.width)) for pixel in pixels))

    def scatter(self, into: Tensor, values: Tensor, place: _Place) -> Tensor:
        """Add (B, C, T, H, W) values to the four pixels of each place, shared out as they were read."""
        x, y = place.fraction[:, None].unbind(3)
        index = place.first.expand(-1, self.flat.shape[1], -1)
        for step, share in zip(self.steps, ((1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y), strict=True):
            into = into.scatter_add(-1, index + step, (values * share).flatten(2))
        return into

    def unpad(self, flat: Tensor) -> Tensor:
        """Return the (B, C, H, W) inside a flat padded image."""
        rows = flat.unflatten(-1, (-1, self.stride))
        return rows.narrow(2, self.reach, self.height).narrow(3, self.reach, self.width)
