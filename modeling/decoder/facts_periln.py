"""Facts about the PeriLN decoder: shape, activations and defaults.

Standard library only: run configuration, launcher and analysis read these facts without importing torch, and exported
folders include them. facts_placements_periln.py holds the norm placements, facts_rules_periln.py the rules for a shape,
facts_rope_periln.py those for its positions, facts_counts_periln.py its counts.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, Self

from .facts_placements_periln import (
    PLACEMENTS,
    LayerPlacement,
    Matrix,
    MatrixRole,
    NormPlacement,
    placements_per_layer,
)

# ------------------------------------------------------------------------------------------------ activations, the loss

# A subset of transformers' ACT2FN: differentiable elementwise functions without parameters, suitable as gates.
ACTIVATIONS: tuple[str, ...] = (
    "gelu",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
)

# Elements of [tokens, V] that exist at a time. CPU: 16 MiB in fp32 stay near the cache (V 8192: 162 ms against 193 for
# 64 MiB). CUDA: 1 GiB in bf16, because each chunk reads and writes the whole gradient of the weight: 4,096 tokens of a
# vocabulary of 100,278, so four chunks of a usual micro-batch (estimated, not measured).
LOSS_CHUNK_ELEMENTS: dict[str, int] = {"cpu": 2**22, "cuda": 2**29}


def loss_chunk_tokens(vocab_size: int, device_type: str) -> int:
    """Return the tokens per chunk of the loss: the power of two whose logits stay within LOSS_CHUNK_ELEMENTS.

    Args:
        vocab_size: Columns of the logits, without padding.
        device_type: As torch names it; all but `cpu` count as `cuda`.
    """
    elements = LOSS_CHUNK_ELEMENTS["cpu" if device_type == "cpu" else "cuda"]
    return 1 << max(0, (elements // vocab_size).bit_length() - 1)


# ---------------------------------------------------------------------------------------------------------------- shape


class Fault(NamedTuple):
    """One fault of a shape: the key to change (dotted below `rope_parameters`), and the message."""

    key: str
    message: str


def default_rope_parameters() -> dict[str, Any]:
    """Return a fresh copy of the default `rope_parameters`: RoFormer's base (arXiv 2104.09864, section 3.2.2)."""
    return {"rope_type": "default", "rope_theta": 10_000.0}


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Shape and normalization of a decoder, with defaults; PeriLNConfig documents the fields."""

    vocab_size: int = 32_000
    vocab_size_multiple: int = 64
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    norm_placement: NormPlacement | tuple[LayerPlacement, ...] = "peri"
    norm_kind: Literal["rmsnorm", "layernorm", "dyt"] = "rmsnorm"
    norm_eps: float = 1e-6
    dyt_alpha: float = 0.5
    frozen_norm_scales: Literal["none", "output", "all"] = "none"
    embedding_norm: bool = False
    final_norm: bool = True
    qk_norm: Literal["none", "head", "projection"] = "none"
    residual_factor: float = 1.0
    gpas: bool = False
    attention_gate: Literal["none", "head", "element"] = "none"
    rope_parameters: dict[str, Any] = field(default_factory=default_rope_parameters)
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    initializer_scheme: Literal["normal", "depth_scaled"] = "normal"
    z_loss_coefficient: float = 0.0

    @classmethod
    def of(cls, config: object) -> Self:
        """Return the shape described by a PeriLNConfig or by a run's decoder settings."""
        return cls(**{each.name: getattr(config, each.name) for each in fields(cls)})

    @property
    def layer_norm_placements(self) -> tuple[LayerPlacement, ...]:
        """The placement of each layer."""
        return placements_per_layer(self.norm_placement, self.num_hidden_layers)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of embedding and head: `vocab_size`, rounded up to `vocab_size_multiple`."""
        return -(-self.vocab_size // self.vocab_size_multiple) * self.vocab_size_multiple

    @property
    def head_width(self) -> int:
        """Width K of a head: `head_dim`, or hidden_size / num_attention_heads where that is None."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def query_width(self) -> int:
        """Width H K of the queries of a token."""
        return self.num_attention_heads * self.head_width

    @property
    def key_width(self) -> int:
        """Width G K of the keys of a token, and of its values."""
        return self.num_key_value_heads * self.head_width

    @property
    def attention_gate_width(self) -> int:
        """Gates of a token's attention: H per head, H K per element, or 0."""
        return {"none": 0, "head": self.num_attention_heads, "element": self.query_width}[self.attention_gate]

    def initial_std(self, layer: int, role: MatrixRole, *, rows: int, columns: int) -> float:
        """Return the standard deviation with which a matrix of a layer, counted from 0, starts."""
        own = PLACEMENTS[self.layer_norm_placements[layer]].initialization
        if own is not None:
            return own.std(Matrix(role, rows, columns), self.hidden_size, self.num_hidden_layers)
        if self.initializer_scheme == "depth_scaled" and role == "to_stream":
            return self.initializer_range / math.sqrt(2 * self.num_hidden_layers)
        return self.initializer_range
