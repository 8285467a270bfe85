"""Causal self-attention with grouped queries and rotary positions.

Shapes: B batch, T tokens, S tokens with those of the cache, D model, H query heads, G key and value heads, K head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_periln import PeriLNConfig
from .facts_placements_periln import PLACEMENTS
from .norms_periln import ScaleNorm
from .residual_periln import BranchMatrix, GateMatrix


class RotaryEmbedding(nn.Module):
    """Rotary position tables with the scaling types of transformers, which also dictates the name and the buffers."""

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: PeriLNConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        inverse_frequencies = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = inverse_frequencies(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: PeriLNConfig, **kwargs: Any) -> tuple[Tensor, float]:
        """Compute the frequencies theta^(-2i/K) of RoFormer (arXiv 2104.09864, section 3.2.2), and the scale 1."""
        assert config.head_dim is not None
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the angles at `position_ids` (B, T) or (1, T), in x's dtype."""
        frequencies = self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = position_ids[..., None].float() * frequencies  # (B, T, K/2)
        angles = torch.cat((angles, angles), dim=-1)  # (B, T, K)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+K/2}) by its position's angle (Llama's layout of RoPE)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attend with plain operations: softmax(Q K^T / sqrt(K) + mask) V.

    Returns:
        The output (B, T, H, K) and the weights (B, H, T, S), as transformers' attention interface requires.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)  # (B, H, S, K)
    scores = query @ key.transpose(2, 3) * scaling  # (B, H, T, S)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SelfAttention(nn.Module):
    """Causal self-attention with grouped queries, rotary positions, and optional norms and gates.

    Gates (arXiv 2505.06708, eq. 5) multiply the output, per head or per element, before its projection.
    """

    is_causal = True  # read by transformers' attention interface

    def __init__(self, config: PeriLNConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        width, norms = config.hidden_size, PLACEMENTS[config.layer_norm_placements[layer_idx]].attention
        self.q_proj = BranchMatrix(config, layer_idx, "query_key", width, query_size)
        self.k_proj = BranchMatrix(config, layer_idx, "query_key", width, key_size)
        self.v_proj = BranchMatrix(config, layer_idx, "value", width, key_size)
        self.o_proj = BranchMatrix(config, layer_idx, "to_stream", query_size, width)
        if config.attention_gate != "none":
            gates = config.shape.attention_gate_width
            self.attention_gate = GateMatrix(config, layer_idx, "attention_gate", width, gates)
        self.qk_norm = "head" if norms.value_norm else config.qk_norm
        if self.qk_norm != "none":
            per_head = self.qk_norm == "head"
            self.q_norm = ScaleNorm(config, config.head_dim if per_head else query_size)
            self.k_norm = ScaleNorm(config, config.head_dim if per_head else key_size)
        if norms.value_norm:
            self.v_norm = ScaleNorm(config, config.head_dim)
        if norms.inner_norm:
            self.inner_norm = ScaleNorm(config, query_size)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over the tokens so far.

        Returns:
            The output (B, T, D), and the attention weights (B, H, T, S) where the implementation has them.
        """
        query, key, value = self._project(hidden_states)
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)  # (B, 1, T, K)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, G, S, K)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation or "eager", eager_attention)
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        if self.config.attention_gate != "none":
            gates = self.attention_gate(hidden_states).unflatten(-1, (query.shape[1], -1))  # (B, T, H, 1 or K)
            output = output * gates.sigmoid()
        output = output.flatten(2)  # (B, T, H K)
        return self.o_proj(self.inner_norm(output) if hasattr(self, "inner_norm") else output), weights

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, T, K), keys and values (B, G, T, K), normalized, before rotation."""
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        if self.qk_norm == "projection":
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)) for x in (query, key, value))
        if self.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        if hasattr(self, "v_norm"):
            value = self.v_norm(value)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
