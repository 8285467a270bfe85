"""Dropout whose masks belong to samples, so that a sample is dropped alike in any batch and on any rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SampleDropout(nn.Module):
    """Zeroes whole channels of a sample with probability p and scales the others by 1 / (1 - p).

    The mask is a function of the sample's key and of this layer's own number alone.
    """

    def __init__(self, p: float, number: int) -> None:
        super().__init__()
        self.p, self.number = p, number

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Drop channels of (B, D, H, W) in training mode.

        Args:
            x: The features.
            keys: (B,) int64, one for each sample; None: masks from torch's global generator.
        """
        if not self.training or not self.p:
            return x
        if keys is None:
            kept = torch.rand(x.shape[:2], device=x.device) >= self.p
        else:
            kept = torch.stack([self._kept(key, x.shape[1]) for key in keys.tolist()]).to(x.device)
        return x * (kept / (1 - self.p)).to(x.dtype)[..., None, None]

    def _kept(self, key: int, channels: int) -> Tensor:
        """Return which channels of a sample stay, drawn on the CPU: the same on every device."""
        generator = torch.Generator().manual_seed((key * 2_654_435_761 + self.number) % 2**63)
        return torch.rand(channels, generator=generator) >= self.p

    def extra_repr(self) -> str:
        """Name the probability and the number."""
        return f"p={self.p}, number={self.number}"
