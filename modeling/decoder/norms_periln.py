"""Norms of the decoder, with a learnable or a frozen scale."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization

from .configuration_periln import PeriLNConfig


class ScaleNorm(nn.Module):
    """RMSNorm, LayerNorm without bias, or DyT over the last dimension; statistics in fp32.

    DyT (arXiv 2503.10622, eq. 4) is no norm, but stands where one does: scale * tanh(alpha x) + bias, elementwise.
    A frozen scale is a buffer: same key in the state dict, but no parameter.

    Args:
        config: Kind and eps.
        size: Width of the last dimension.
        frozen: Whether the scale is frozen; None: as `frozen_norm_scales` says of all norms.
        start: Value at which the scale starts.
    """

    weight: Tensor

    def __init__(self, config: PeriLNConfig, size: int, *, frozen: bool | None = None, start: float = 1.0) -> None:
        super().__init__()
        self.kind: Literal["rmsnorm", "layernorm", "dyt"] = config.norm_kind
        self.eps = config.norm_eps
        self.start, self.alpha_start = start, config.dyt_alpha
        if config.frozen_norm_scales == "all" if frozen is None else frozen:
            self.register_buffer("weight", torch.full((size,), start))
        else:
            self.weight = nn.Parameter(torch.full((size,), start))
        if self.kind == "dyt":
            self.alpha = nn.Parameter(torch.full((1,), self.alpha_start))
            self.bias = nn.Parameter(torch.zeros(size))

    def reset(self) -> None:
        """Set what has not been loaded to its start."""
        initialization.constant_(self.weight, self.start)
        if self.kind == "dyt":
            initialization.constant_(self.alpha, self.alpha_start)
            initialization.zeros_(self.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize over the last dimension."""
        weight = self.weight.to(hidden_states.dtype)  # a frozen scale stays in fp32 under DeepSpeed
        match self.kind:
            case "rmsnorm":
                return F.rms_norm(hidden_states, weight.shape, weight, self.eps)
            case "layernorm":
                return F.layer_norm(hidden_states, weight.shape, weight, None, self.eps)
            case "dyt":
                return weight * torch.tanh(self.alpha * hidden_states) + self.bias

    def extra_repr(self) -> str:
        """Show kind, size, eps where it has one, and the start of its scale."""
        start = "" if self.start == 1 else f", start={self.start:g}"
        return f"{self.kind}, {len(self.weight)}{'' if self.kind == 'dyt' else f', eps={self.eps}'}{start}"
