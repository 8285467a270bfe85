"""Gated MLP of the decoder.

Shapes: B batch, T tokens, D model, F MLP.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_periln import PeriLNConfig
from .facts_placements_periln import PLACEMENTS
from .norms_periln import ScaleNorm
from .residual_periln import BranchMatrix


class GatedMLP(nn.Module):
    """The gated MLP down(act(gate(x)) * up(x)): SwiGLU with `hidden_act: silu` (arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: PeriLNConfig, layer: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = BranchMatrix(config, layer, "mlp_input", width, inner)
        self.up_proj = BranchMatrix(config, layer, "mlp_input", width, inner)
        self.down_proj = BranchMatrix(config, layer, "to_stream", inner, width)
        self.act_fn = ACT2FN[config.hidden_act]
        if PLACEMENTS[config.layer_norm_placements[layer]].mlp.inner_norm:
            self.inner_norm = ScaleNorm(config, inner)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D) by way of (B, T, F)."""
        inner = self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(self.inner_norm(inner) if hasattr(self, "inner_norm") else inner)
