"""Weighted means of metrics, accumulated on the device and reduced across ranks on request."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from train.ranks.distributed import sum_over_ranks
from train.tasks.task import Sums


class Accumulator:
    """Sums and weights by metric, kept on the device until the means are read."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}  # (sum, weight) of this rank, (2,) fp64

    def add(self, sums: Sums) -> None:
        """Add the sums of one micro-batch, without waiting for the device."""
        for name, (value, weight) in sums.items():
            pair = torch.stack((value.detach().double(), weight.detach().double()))
            self.totals[name] = self.totals[name] + pair if name in self.totals else pair

    def means(self) -> dict[str, float]:
        """Return the means over all ranks, with one reduction and one device synchronization."""
        names = sorted(self.totals)
        if not names:
            return {}
        totals = sum_over_ranks(torch.stack([self.totals[name] for name in names])).tolist()
        return {
            name: total / weight if weight else math.nan for name, (total, weight) in zip(names, totals, strict=True)
        }
