"""Gated MLP of the decoder.

Shapes: B batch, T tokens, D model, F MLP.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_periln import PeriLNConfig
from .residual_periln import ResidualProjection


class GatedMLP(nn.Module):
    """The gated MLP down(act(gate(x)) * up(x)): SwiGLU with `hidden_act: silu` (arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: PeriLNConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = ResidualProjection(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D) by way of (B, T, F)."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
