"""Mean-field inference in a fully connected CRF over the pixels of an image.

Kraehenbuehl and Koltun, Efficient inference in fully connected CRFs with Gaussian edge potentials, NeurIPS 2011. Two
kernels with Potts compatibility: an appearance kernel over position and color, and a smoothness kernel over position.

Shapes: L labels, H height, W width, N = H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .permutohedral_bap import PermutohedralLattice

_CHUNK = 2**24  # elements of the exact kernel that are computed at a time


@dataclass(frozen=True, kw_only=True)
class CRFSettings:
    """Weights and widths of both kernels; the defaults are those for pseudo labels (Oh, Kim, Ham, CVPR 2021).

    Args:
        weight: Of the appearance kernel.
        xy: Its standard deviation in pixels.
        rgb: Its standard deviation in gray levels, of 255.
        smooth_weight: Of the smoothness kernel.
        smooth_xy: Its standard deviation in pixels.
        steps: Mean-field updates.
    """

    weight: float = 4.0
    xy: float = 55.0
    rgb: float = 3.0
    smooth_weight: float = 3.0
    smooth_xy: float = 3.0
    steps: int = 10


class _Kernel(NamedTuple):
    """A normalized filter of label maps (L, H, W), and its weight."""

    weight: float
    apply: Callable[[Tensor], Tensor]


@torch.no_grad()
def mean_field(probabilities: Tensor, image: Tensor, settings: CRFSettings, *, exact: bool = False) -> Tensor:
    """Return the approximate marginals of a dense CRF.

    Each update is Q = softmax(log P + sum_k w_k D_k^-1/2 K_k D_k^-1/2 Q), where K_k holds the kernel between all pairs
    of pixels, each pixel with itself included, and D_k its row sums on the diagonal.

    Args:
        probabilities: (L, H, W), the unary term P: at least 0, not all 0 at a pixel.
        image: (3, H, W), from 0 to 255.
        settings: Weights and widths.
        exact: Sum the appearance kernel over all pairs, at quadratic cost, rather than on a lattice.

    Returns:
        (L, H, W), sums over labels are 1, in the type of `probabilities`.

    Raises:
        ValueError: The image does not have the size of the probabilities.
    """
    if image.shape[1:] != probabilities.shape[1:]:
        raise ValueError(
            f"the image {tuple(image.shape)} and probabilities {tuple(probabilities.shape)} differ in size"
        )
    log_unary = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
    kernels = _kernels(image.to(probabilities.dtype), settings, exact)
    q = log_unary.softmax(dim=0)
    for _ in range(settings.steps):
        messages = sum((kernel.weight * kernel.apply(q) for kernel in kernels), torch.zeros_like(q))
        q = (log_unary + messages).softmax(dim=0)
    return q


def _kernels(image: Tensor, settings: CRFSettings, exact: bool) -> list[_Kernel]:
    kernels = []
    if settings.smooth_weight:
        kernels.append(_Kernel(settings.smooth_weight, _normalized(_smoothness(image, settings.smooth_xy), image)))
    if settings.weight:
        features = _appearance_features(image, settings)
        blur = _exact_blur(features) if exact else PermutohedralLattice(features).blur

        def appearance(maps: Tensor) -> Tensor:
            return blur(maps.flatten(1).T).T.reshape(maps.shape)

        kernels.append(_Kernel(settings.weight, _normalized(appearance, image)))
    return kernels


def _normalized(apply: Callable[[Tensor], Tensor], image: Tensor) -> Callable[[Tensor], Tensor]:
    """Return D^-1/2 K D^-1/2 for a filter K."""
    scale = apply(torch.ones_like(image[:1])).clamp(min=torch.finfo(image.dtype).tiny).rsqrt()
    return lambda maps: scale * apply(scale * maps)


def _smoothness(image: Tensor, xy: float) -> Callable[[Tensor], Tensor]:
    """Return the exact Gaussian over positions, which separates into rows and columns."""
    rows, columns = (_gaussian_matrix(size, xy, image) for size in image.shape[1:])
    return lambda maps: rows @ maps @ columns


def _gaussian_matrix(size: int, deviation: float, like: Tensor) -> Tensor:
    position = torch.arange(size, dtype=like.dtype, device=like.device) / deviation
    return (-(position[:, None] - position).square() / 2).exp()


def _appearance_features(image: Tensor, settings: CRFSettings) -> Tensor:
    """Return position and color of each pixel in standard deviations: (N, 5)."""
    height, width = image.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=image.dtype, device=image.device),
        torch.arange(width, dtype=image.dtype, device=image.device),
        indexing="ij",
    )
    return torch.cat((torch.stack((x, y)) / settings.xy, image / settings.rgb)).flatten(1).T


def _exact_blur(features: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the sum over all pairs, in chunks of rows: (N, C) to (N, C)."""
    rows = max(1, _CHUNK // len(features))

    def blur(values: Tensor) -> Tensor:
        parts = [(-torch.cdist(chunk, features).square() / 2).exp() @ values for chunk in features.split(rows)]
        return torch.cat(parts)

    return blur
