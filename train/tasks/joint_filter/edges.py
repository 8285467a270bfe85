"""Scores of filtered images: peak signal-to-noise ratios over the whole image and along its edges.

H height, W width, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EDGE_SLOPE = 0.1  # change of brightness per pixel that counts as an edge
EDGE_REACH = 2  # pixels around an edge that count as its neighborhood


def ratios(output: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
    """Return the ratio over pixels inside, and over those of them that are near edges of the truth, (2,) fp32 in dB.

    Args:
        output: (1, C, H, W).
        truth: (1, C, H, W), from 0 to 1.
        inside: (1, 1, H, W) bool.
    """
    squares = (output.float() - truth).double().square().mean(dim=1, keepdim=True)
    return torch.stack([_psnr(squares[place]) for place in (inside, inside & edges(truth))]).float()


def have_ratios(truth: Tensor, inside: Tensor) -> Tensor:
    """Return whether there are pixels for either ratio, (2,) fp32, 0 or 1."""
    return torch.stack([inside.any(), (inside & edges(truth)).any()]).float()


def edges(image: Tensor) -> Tensor:
    """Return the pixels near edges of an image (1, C, H, W): (1, 1, H, W) bool."""
    gray = image.mean(dim=1, keepdim=True)
    across, down = F.pad(gray.diff(dim=3), (0, 1)).abs(), F.pad(gray.diff(dim=2), (0, 0, 0, 1)).abs()
    steep = (torch.maximum(across, down) > EDGE_SLOPE).float()
    return F.max_pool2d(steep, 2 * EDGE_REACH + 1, stride=1, padding=EDGE_REACH) > 0


def _psnr(squares: Tensor) -> Tensor:
    """Return the ratio of a peak of 1 to the mean squared error, in dB, at most 100; 100 for no pixels."""
    mean = squares.mean() if squares.numel() else squares.sum()  # non-finite values stay non-finite
    return -10 * mean.clamp(min=1e-10).log10()
