"""Helpers for parameters and gradients: layer index, norm scales, squared norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def layer_of(name: str) -> int | None:
    """Return the index of the block that a dotted name lies in: its first whole number, None where there is none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def is_norm_scale(module: nn.Module) -> bool:
    """Return whether a module is a norm whose `weight` scales what it has normalized."""
    return "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), Tensor)


def norm_scales(model: nn.Module) -> set[str]:
    """Return the names of the parameters that scale norms."""
    names = {f"{name}.weight" if name else "weight" for name, module in model.named_modules() if is_norm_scale(module)}
    return names & {name for name, _ in model.named_parameters()}


def squared_norm(values: Tensor) -> Tensor:
    """Return the sum of squares, () fp64, without a copy in fp64: the square of a norm that is accumulated in it."""
    return torch.linalg.vector_norm(values.detach(), dtype=torch.float64).square()
