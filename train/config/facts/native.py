"""Architectures of transformers that compute what our decoder does, and their settings.

One record per architecture serves both directions: native_choice.py finds the one that a decoder fits, native_config.py
reads a config.json with it, and train/convert/rules.py derives the mapping of tensors from it. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from modeling.decoder.facts_periln import DecoderShape

NativePlacement = Literal["pre", "peri", "output"]
# What a placement computes once its constants are multiplied into norm scales: `lns` divides a normalized input, and
# the other two differ in their initialization alone.
COMPUTES: dict[str, NativePlacement] = {
    "pre": "pre",
    "lns": "pre",
    "lns_learned": "pre",
    "peri": "peri",
    "peri_depth_scaled": "peri",
    "output": "output",
}
DEFAULT_THETA = 10_000.0  # of transformers, where rope_parameters state none


def _nothing(_: DecoderShape) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of transformers: what it computes, its settings, and the names and forms of its tensors.

    Attributes:
        model_type: As in config.json.
        class_name: The class with the language-model head.
        placement: Placement of its norms.
        qk_norm: Its norm on queries and keys.
        norm_kind: Kind of its norms.
        input_norms: Names, in a layer, of the input norms of attention and MLP; None where it has none.
        output_norms: Likewise, of the output norms.
        query_key_norms: Names, in a layer, of the norms on queries and keys.
        whole_heads: Whether transformers requires hidden_size to be a multiple of the heads.
        square_attention: Whether heads times their width must be hidden_size.
        activation: Name of the setting `hidden_act`.
        eps: Name of the setting `norm_eps`.
        selects: Values of settings that tell variants of one model_type apart.
        fixed: The other settings that must have one value for it to compute what our decoder does.
        defaults: Values of settings that a config.json lacks, where they are not those of fixed.
        needless: Settings that have no effect beside those of fixed.
        nested_rope: Whether rope_parameters are stated by kind of attention.
        partial_rotary: Whether rope_parameters must say that heads are rotated whole.
        neighbors_rotate: Whether rotary positions turn neighboring elements of a head, not halves.
        joined_mlp: Whether gate and up projection are one matrix, `gate_up_proj`.
        scales_from_zero: Whether norms multiply by 1 + weight.
        scaled_embedding: Whether the embedding is multiplied by sqrt(hidden_size).
        norms_by_head: Whether queries and keys of each head have a norm of their own.
        norm_biases: Whether norms of the stream have biases.
        residual_multiplier: Whether it has `residual_factor` as a setting.
    """

    model_type: str
    class_name: str
    placement: NativePlacement
    qk_norm: Literal["none", "head", "projection"]
    norm_kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    input_norms: tuple[str, str] | None = ("input_layernorm", "post_attention_layernorm")
    output_norms: tuple[str, str] | None = None
    query_key_norms: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    whole_heads: bool = False
    square_attention: bool = False
    activation: str = "hidden_act"
    eps: str = "rms_norm_eps"
    selects: Mapping[str, Any] = field(default_factory=dict[str, Any])
    fixed: Callable[[DecoderShape], dict[str, Any]] = _nothing
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needless: tuple[str, ...] = ()
    nested_rope: bool = False
    partial_rotary: bool = False
    neighbors_rotate: bool = False
    joined_mlp: bool = False
    scales_from_zero: bool = False
    scaled_embedding: bool = False
    norms_by_head: bool = False
    norm_biases: bool = False
    residual_multiplier: bool = False

    def is_tied(self, shape: DecoderShape) -> bool:
        """Return whether its head shares the embedding: not where the embedding alone is normalized or multiplied."""
        return shape.tie_word_embeddings and not shape.embedding_norm and not self.scaled_embedding

    def settings(self, shape: DecoderShape) -> dict[str, Any]:
        """Return the settings of its config.json for a decoder that it fits, special tokens excepted."""
        rope = {"rope_theta": DEFAULT_THETA, **shape.rope_parameters}
        if self.partial_rotary:
            rope["partial_rotary_factor"] = 1.0
        local = {"rope_type": "default", "rope_theta": DEFAULT_THETA}  # of layers with sliding windows: none here
        multiplier = {"residual_multiplier": shape.residual_factor} if self.residual_multiplier else {}
        return {
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
            "head_dim": shape.head_width,
            self.activation: shape.hidden_act,
            "max_position_embeddings": shape.max_position_embeddings,
            self.eps: shape.norm_eps,
            "rope_parameters": {"full_attention": rope, "sliding_attention": local} if self.nested_rope else rope,
            "tie_word_embeddings": self.is_tied(shape),
            "initializer_range": shape.initializer_range,
            **multiplier,
            **self.selects,
            **self.fixed(shape),
        }

    def misfit(self, shape: DecoderShape) -> str | None:
        """Return why a shape with its placement and norms does not fit it; None if it does."""
        width, heads = shape.hidden_size, shape.num_attention_heads
        if self.square_attention and shape.query_width != width:
            return f"{self.class_name} has no head_dim of its own: {heads} heads of {shape.head_width} are not {width}"
        if self.whole_heads and width % heads:
            return f"{self.class_name} refuses a hidden_size ({width}) that num_attention_heads ({heads}) do not divide"
        return None


# ------------------------------------------------------------------------------------------------------------- records


def _full_attention(shape: DecoderShape) -> list[str]:
    return ["full_attention"] * shape.num_hidden_layers


def _plain(*without: str) -> Callable[[DecoderShape], dict[str, Any]]:
    """Return settings that switch features off, for all shapes."""
    return lambda _: {"attention_dropout": 0.0, **dict.fromkeys(without, False)}


def _hyperclovax(shape: DecoderShape) -> dict[str, Any]:
    multipliers = {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "attention_multiplier": shape.head_width**-0.5}
    return _plain("attention_bias", "mlp_bias")(shape) | multipliers


def _qwen3(shape: DecoderShape) -> dict[str, Any]:
    return _plain("attention_bias", "use_sliding_window")(shape) | {"layer_types": _full_attention(shape)}


def _gemma3(shape: DecoderShape) -> dict[str, Any]:
    return _plain("attention_bias", "use_bidirectional_attention")(shape) | {
        "layer_types": _full_attention(shape),
        "query_pre_attn_scalar": shape.head_width,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }


def _exaone4(shape: DecoderShape) -> dict[str, Any]:
    windows = {"sliding_window": None, "sliding_window_pattern": 0}
    return {"attention_dropout": 0.0, "layer_types": _full_attention(shape)} | windows


def _stablelm(_: DecoderShape) -> dict[str, Any]:
    dropout = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
    return dropout | {"use_qkv_bias": False, "use_parallel_residual": False}


_OUTPUT_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_LLAMA_DEFAULTS = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_HYPERCLOVAX: dict[str, Any] = {
    "model_type": "hyperclovax",
    "class_name": "HyperCLOVAXForCausalLM",
    "qk_norm": "none",
    "whole_heads": True,
    "fixed": _hyperclovax,
    "defaults": _LLAMA_DEFAULTS | {"use_post_norm": True, "attention_multiplier": None, "residual_multiplier": 1.0},
    "residual_multiplier": True,
}
_STABLELM: dict[str, Any] = {
    "model_type": "stablelm",
    "class_name": "StableLmForCausalLM",
    "placement": "pre",
    "norm_kind": "layernorm",
    "eps": "layer_norm_eps",
    "square_attention": True,
    "fixed": _stablelm,
    "defaults": {
        "vocab_size": 50_304,
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "qk_layernorm": False,
        "partial_rotary_factor": 0.25,
    },
    "partial_rotary": True,
    "norm_biases": True,
}

ARCHITECTURES: tuple[Architecture, ...] = (  # of several that fit a decoder, the first is written
    Architecture(
        model_type="llama",
        class_name="LlamaForCausalLM",
        placement="pre",
        qk_norm="none",
        whole_heads=True,
        fixed=_plain("attention_bias", "mlp_bias"),
        defaults=_LLAMA_DEFAULTS,
    ),
    Architecture(
        model_type="qwen3",
        class_name="Qwen3ForCausalLM",
        placement="pre",
        qk_norm="head",
        fixed=_qwen3,
        defaults={
            **_LLAMA_DEFAULTS,
            "vocab_size": 151_936,
            "intermediate_size": 22_016,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32_768,
        },
        needless=("sliding_window", "max_window_layers"),
    ),
    Architecture(
        **_HYPERCLOVAX,
        placement="peri",
        output_norms=("post_norm1", "post_norm2"),
        selects={"use_post_norm": True},
    ),
    Architecture(**_HYPERCLOVAX, placement="pre", selects={"use_post_norm": False}),
    Architecture(
        model_type="glm4",
        class_name="Glm4ForCausalLM",
        placement="peri",
        qk_norm="none",
        output_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
        fixed=_plain("attention_bias"),
        defaults={
            "vocab_size": 151_552,
            "hidden_size": 4096,
            "intermediate_size": 13_696,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1.5625e-07,
            "tie_word_embeddings": False,
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
        },
        partial_rotary=True,
        neighbors_rotate=True,
        joined_mlp=True,
    ),
    Architecture(
        model_type="gemma3_text",
        class_name="Gemma3ForCausalLM",
        placement="peri",
        qk_norm="head",
        input_norms=("input_layernorm", "pre_feedforward_layernorm"),
        output_norms=_OUTPUT_NORMS,
        whole_heads=True,
        activation="hidden_activation",
        fixed=_gemma3,
        defaults={
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "layer_types": "sliding_attention in five of six layers",
        },
        needless=("sliding_window", "sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"),
        nested_rope=True,
        scales_from_zero=True,
        scaled_embedding=True,
    ),
    Architecture(
        model_type="olmo2",
        class_name="Olmo2ForCausalLM",
        placement="output",
        qk_norm="projection",
        input_norms=None,
        output_norms=_OUTPUT_NORMS,
        fixed=_plain("attention_bias"),
        defaults=_LLAMA_DEFAULTS | {"vocab_size": 50_304, "rms_norm_eps": 1e-5},
    ),
    Architecture(
        model_type="exaone4",
        class_name="Exaone4ForCausalLM",
        placement="output",
        qk_norm="head",
        input_norms=None,
        output_norms=_OUTPUT_NORMS,
        fixed=_exaone4,
        defaults={
            **_LLAMA_DEFAULTS,
            "vocab_size": 102_400,
            "intermediate_size": 16_384,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-5,
            "sliding_window": 4096,
        },
    ),
    Architecture(**_STABLELM, qk_norm="none", selects={"qk_layernorm": False}),
    Architecture(
        **_STABLELM,
        qk_norm="head",
        query_key_norms=("self_attn.q_layernorm.norms", "self_attn.k_layernorm.norms"),
        selects={"qk_layernorm": True},
        norms_by_head=True,
    ),
)
