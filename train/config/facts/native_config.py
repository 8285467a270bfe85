"""The config.json of a Hugging Face folder as settings of our decoder, or why it has none. Standard library only.

A setting that is not known is refused: it may change what the weights mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple, cast

from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_rules_periln import shape_faults
from train.config.facts.native import ARCHITECTURES, DEFAULT_THETA, Architecture

OWN = "periln"  # the model_type of our own folders
# Settings of a folder that say nothing of what a decoder computes, or only of its training: they are not compared.
NOT_COMPUTED = ("vocab_size_multiple", "frozen_norm_scales", "initializer_range", "initializer_scheme")
# Settings of transformers that do not change the logits.
_HARMLESS = frozenset(
    {
        *("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "_name_or_path"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "initializer_range", "pretraining_tp"),
        *("return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "id2label"),
        *("label2id", "problem_type", "tokenizer_class", "_attn_implementation_autoset"),
    }
)
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "max_position_embeddings",
)
_OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")
_ROPE = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
# What a setting with another value means, none of which our decoder has.
_FEATURES = {
    "attention_bias": "biases in attention",
    "use_qkv_bias": "biases in attention",
    "mlp_bias": "biases in the MLP",
    "attention_dropout": "dropout",
    "hidden_dropout": "dropout",
    "use_sliding_window": "sliding windows",
    "sliding_window": "sliding windows, and layers without positions",
    "sliding_window_pattern": "sliding windows, and layers without positions",
    "layer_types": "sliding windows",
    "final_logit_softcapping": "capped logits",
    "attn_logit_softcapping": "capped attention scores",
    "query_pre_attn_scalar": "another scale of attention",
    "attention_multiplier": "another scale of attention",
    "embedding_multiplier": "multiplied embeddings",
    "logits_scaling": "multiplied logits",
    "use_bidirectional_attention": "attention to later tokens",
    "use_parallel_residual": "attention and MLP side by side",
    "quantization_config": "quantized weights",
}


class Meaning(NamedTuple):
    """A folder's decoder."""

    architecture: Architecture | None  # None: our own, or not known
    shape: DecoderShape | None
    faults: tuple[str, ...] = ()  # each begins with the name of a setting of config.json

    @property
    def settings(self) -> dict[str, Any]:
        """The settings `task.model.*` that its weights need."""
        assert self.shape is not None
        return {
            each.name: getattr(self.shape, each.name)
            for each in fields(DecoderShape)
            if each.name not in (*NOT_COMPUTED, "z_loss_coefficient", "dyt_alpha")
        }


def meaning(config: Mapping[str, Any]) -> Meaning:
    """Return the decoder that a config.json of one of our architectures describes, or all reasons why none is."""
    kind = config.get("model_type")
    variants = [each for each in ARCHITECTURES if each.model_type == kind]
    if not variants:
        known = ", ".join(dict.fromkeys(each.model_type for each in ARCHITECTURES))
        fault = f"model_type {kind!r} has no counterpart here; folders of {OWN}, {known} can be read"
        return Meaning(None, None, (fault,))
    values = {**variants[0].defaults, **config}
    architecture = next(
        (each for each in variants if all(values.get(k) == v for k, v in each.selects.items())), variants[0]
    )
    faults = [*_type_faults(architecture, values)]
    if faults:
        return Meaning(architecture, None, tuple(faults))
    shape = _shape(architecture, values)
    faults = [*_unlike(architecture, shape, values), *_unknown(architecture, config)]
    faults += [f"{key}: {message}" for key, message in shape_faults(DecoderShape.of(shape).__dict__)]
    return Meaning(architecture, None if faults else shape, tuple(faults))


def _type_faults(architecture: Architecture, values: Mapping[str, Any]) -> Iterator[str]:
    for key in (*_SIZES, *_OPTIONAL_SIZES):
        value = values.get(key)
        if not (type(value) is int and value > 0) and not (value is None and key in _OPTIONAL_SIZES):
            yield f"{key}: {value!r} is not a whole number above 0"
    eps = values[architecture.eps]
    if not (isinstance(eps, float | int) and not isinstance(eps, bool) and eps > 0):
        yield f"{architecture.eps}: {eps!r} is not a number above 0"
    if not isinstance(values[architecture.activation], str):
        yield f"{architecture.activation}: {values[architecture.activation]!r} is not a name"
    if not isinstance(values["tie_word_embeddings"], bool):
        yield f"tie_word_embeddings: {values['tie_word_embeddings']!r} is neither true nor false"
    for key in architecture.selects:
        if not isinstance(values[key], bool):
            yield f"{key}: {values[key]!r} is neither true nor false"
    if architecture.residual_multiplier and not isinstance(values["residual_multiplier"], float | int):
        yield f"residual_multiplier: {values['residual_multiplier']!r} is not a number"
    for key in ("rope_parameters", "rope_scaling"):
        stated = values.get(key)
        if stated is None:
            continue
        if not isinstance(stated, dict):
            yield f"{key}: {stated!r} is not a mapping"
        elif architecture.nested_rope and not isinstance(cast("dict[str, Any]", stated).get("full_attention"), dict):
            yield f"{key}: has no full_attention, whose rotary positions would be those of all layers"


def _shape(architecture: Architecture, values: Mapping[str, Any]) -> DecoderShape:
    heads, width = values["num_attention_heads"], values["hidden_size"]
    return DecoderShape(
        **{key: values[key] for key in _SIZES},
        num_key_value_heads=values["num_key_value_heads"] or heads,
        head_dim=values["head_dim"] or width // heads,
        hidden_act=values[architecture.activation],
        norm_placement=architecture.placement,
        norm_kind=architecture.norm_kind,
        norm_eps=float(values[architecture.eps]),
        qk_norm=architecture.qk_norm,
        residual_factor=float(values["residual_multiplier"]) if architecture.residual_multiplier else 1.0,
        rope_parameters=_rope(architecture, values),
        tie_word_embeddings=values["tie_word_embeddings"],
    )


def _rope(architecture: Architecture, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary positions, which older versions of transformers state as `rope_scaling` and `rope_theta`."""
    stated = cast("dict[str, Any]", values.get("rope_parameters") or values.get("rope_scaling") or {})
    stated = dict(stated["full_attention"]) if architecture.nested_rope else dict(stated)
    kind = stated.pop("rope_type", None) or stated.pop("type", None) or "default"
    stated.pop("type", None)
    theta = stated.pop("rope_theta", None) or values.get("rope_theta") or DEFAULT_THETA
    if architecture.partial_rotary:
        stated.setdefault("partial_rotary_factor", values.get("partial_rotary_factor"))
    if stated.get("partial_rotary_factor") == 1:
        del stated["partial_rotary_factor"]
    return {"rope_type": kind, "rope_theta": float(theta) if type(theta) is int else theta, **stated}


def _unlike(architecture: Architecture, shape: DecoderShape, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings with which the architecture computes something else than our decoder."""
    fixed = architecture.fixed(shape)
    if architecture.scaled_embedding:
        fixed["tie_word_embeddings"] = False  # its embedding is multiplied, its head is not
    for key, needed in fixed.items():
        value = values.get(key, needed)
        if value != needed and not (key == "attention_multiplier" and value is None):
            feature = f" ({_FEATURES[key]})" if key in _FEATURES else ""
            yield f"{key}: {_short(value)} is not supported{feature}; only {_short(needed)} is"
    if misfit := architecture.misfit(shape):
        yield f"hidden_size: {misfit}"


def _unknown(architecture: Architecture, config: Mapping[str, Any]) -> Iterator[str]:
    any_shape = replace(DecoderShape(), num_hidden_layers=1)
    known = {*_HARMLESS, *_SIZES, *_OPTIONAL_SIZES, *_ROPE, "tie_word_embeddings", *architecture.fixed(any_shape)}
    known |= {architecture.activation, architecture.eps, *architecture.selects, *architecture.needless}
    known |= {"residual_multiplier"} if architecture.residual_multiplier else set()
    for key in config:
        if key not in known and config[key] is not None:
            feature = f"{_FEATURES[key]} are not supported" if key in _FEATURES else "its meaning is not known here"
            remedy = "" if key in _FEATURES else "; remove it from config.json if it has no effect"
            yield f"{key}: {_short(config[key])}: {feature}{remedy}"


def _short(value: object) -> str:
    if isinstance(value, list):
        items = cast("list[object]", value)
        if len(set(map(repr, items))) == 1:
            return f"{items[0]!r} in every layer"
    text = repr(cast("object", value))
    return text if len(text) <= 60 else f"{text[:57]}..."
