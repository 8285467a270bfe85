"""Norms of the decoder, with a learnable or a frozen scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_periln import PeriLNConfig


class ScaleNorm(nn.Module):
    """RMSNorm, or LayerNorm without bias, over the last dimension; statistics in fp32.

    A frozen scale is a buffer: same key in the state dict, but no parameter.
    """

    weight: Tensor

    def __init__(self, config: PeriLNConfig, size: int, *, frozen: bool | None = None) -> None:
        super().__init__()
        self.kind, self.eps = config.norm_kind, config.norm_eps
        if config.frozen_norm_scales == "all" if frozen is None else frozen:
            self.register_buffer("weight", torch.ones(size))
        else:
            self.weight = nn.Parameter(torch.ones(size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize over the last dimension."""
        weight = self.weight.to(hidden_states.dtype)  # a frozen scale stays in fp32 under DeepSpeed
        if self.kind == "layernorm":
            return F.layer_norm(hidden_states, weight.shape, weight, None, self.eps)
        return F.rms_norm(hidden_states, weight.shape, weight, self.eps)

    def extra_repr(self) -> str:
        """Show kind, size and eps."""
        return f"{self.kind}, {len(self.weight)}, eps={self.eps}"
