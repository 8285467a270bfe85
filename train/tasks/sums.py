"""Sums of metrics over the images of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from train.tasks.task import Sums


def add(sums: Sums, name: str, value: Tensor, weight: Tensor | None = None) -> None:
    """Add a value and its weight (1 by default) to the sums of a name."""
    value_before, weight_before = sums.get(name, (torch.zeros_like(value), torch.zeros_like(value)))
    more = torch.ones_like(value) if weight is None else weight.to(value)
    sums[name] = (value_before + value, weight_before + more)


def add_judged(sums: Sums, name: str, values: Tensor, judged: Tensor) -> None:
    """Add metrics of several images, each with weight `judged` (0 or 1), which has the same shape."""
    add(sums, name, (values * judged).sum(), judged.sum())
