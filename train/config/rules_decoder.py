"""What no single type can say of a language model: its shape, its text, and settings that it never reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from train.config.values import Rule, Values

# transformers knows more (ACT2FN); these are differentiable elementwise functions that make a gate.
_ACTIVATIONS = (
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

# What each kind of RoPE scaling needs, and may have beside it (transformers.modeling_rope_utils).
_ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "truncate",
            "mscale",
            "mscale_all_dim",
        ),
    ),
}

_STDLIB = "python-stdlib"
_SMALLEST_BPE = 257  # 256 bytes and the end of a document


def _heads_divide(values: Values) -> Iterator[str]:
    heads, groups = values["task.model.num_attention_heads"], values["task.model.num_key_value_heads"]
    if heads % groups:
        allowed = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        yield (
            f"task.model.num_key_value_heads: {groups} does not divide num_attention_heads {heads}; "
            f"write one of {allowed}"
        )


def _head_width_is_even(values: Values) -> Iterator[str]:
    width, heads, hidden = (values[f"task.model.{key}"] for key in ("head_dim", "num_attention_heads", "hidden_size"))
    if width is None and hidden % heads:
        yield (
            f"task.model.num_attention_heads: {heads} does not divide hidden_size {hidden}; "
            f"write a divisor, or give task.model.head_dim"
        )
    elif width is None and hidden // heads % 2:
        yield (
            f"task.model.num_attention_heads: {heads} heads are {hidden // heads} wide each, but rotary positions "
            f"turn pairs; give an even task.model.head_dim"
        )
    elif width is not None and width % 2:
        yield f"task.model.head_dim: {width} is odd, but rotary positions turn pairs; write {width - 1} or {width + 1}"


def _activation_is_known(values: Values) -> Iterator[str]:
    name: str = values["task.model.hidden_act"]
    if name not in _ACTIVATIONS:
        near = difflib.get_close_matches(name, _ACTIVATIONS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield f"task.model.hidden_act: {name!r} is none of {', '.join(_ACTIVATIONS)}{hint}"


def _placement_for_every_layer(values: Values) -> Iterator[str]:
    names, layers = values["task.model.norm_placement"], values["task.model.num_hidden_layers"]
    if not isinstance(names, str) and len(names) != layers:
        yield (
            f"task.model.norm_placement: {len(names)} names for num_hidden_layers {layers}; "
            f"write one name, or one per layer"
        )


def _output_norms_are_there(values: Values) -> Iterator[str]:
    """Settings of the norms on module outputs want such norms."""
    names, frozen = values["task.model.norm_placement"], values["task.model.frozen_norm_scales"]
    lacking = not {"peri", "output"} & set((names,) if isinstance(names, str) else names)
    if frozen == "output" and lacking:
        yield (
            "task.model.frozen_norm_scales: output has no effect, as no layer has a norm on its outputs; "
            "write none or all, or set task.model.norm_placement to peri or output"
        )
    if values["optim.output_norm_weight_decay"] and (lacking or frozen != "none"):
        why = "no layer has a norm on its outputs" if lacking else f"task.model.frozen_norm_scales is {frozen}"
        yield f"optim.output_norm_weight_decay: has no effect, as {why}; write 0"


def _rope_is_complete(values: Values) -> Iterator[str]:
    """Say which keys are missing or useless: transformers would only log it."""
    rope, path = values["task.model.rope_parameters"], "task.model.rope_parameters"
    kind = rope.get("rope_type", "default")
    if kind not in _ROPE_KEYS:
        yield f"{path}.rope_type: {kind!r} is none of {', '.join(_ROPE_KEYS)}"
        return
    needed, allowed = _ROPE_KEYS[kind]
    for key in needed:
        if key not in rope:
            yield f"{path}.{key}: missing; rope_type {kind} needs it"
    for key, value in rope.items():
        if key not in ("rope_type", "rope_theta", *needed, *allowed):
            readable = ", ".join(("rope_type", "rope_theta", *needed, *allowed))
            yield f"{path}.{key}: unknown key; rope_type {kind} reads {readable}"
        elif key not in ("rope_type", "truncate") and not (type(value) in (int, float) and value > 0):
            yield f"{path}.{key}: {value!r} is not a number above 0"


def _windows_fit_the_positions(values: Values) -> Iterator[str]:
    window, longest = values["task.data.sequence_length"], values["task.model.max_position_embeddings"]
    if window > longest:
        yield (
            f"task.data.sequence_length: {window} is more than task.model.max_position_embeddings {longest}; "
            f"lower the one or raise the other"
        )


def _vocabulary_holds_the_bytes(values: Values) -> Iterator[str]:
    size = values["task.model.vocab_size"]
    if values["task.data.tokenizer"] == "byte-bpe" and size < _SMALLEST_BPE:
        yield f"task.model.vocab_size: {size} is too small for the tokenizer byte-bpe; write {_SMALLEST_BPE} or more"


def _there_is_a_source(values: Values) -> Iterator[str]:
    if not values["task.data.sources"]:
        yield f"task.data.sources: is empty; write at least one, as in [{_STDLIB}]"


def _validation_is_told_once(values: Values) -> Iterator[str]:
    fraction, path = values["task.data.validation_fraction"], "task.data.validation_fraction"
    if fraction is not None and values["task.data.validation_sources"]:
        yield f"{path}: has no effect beside task.data.validation_sources; leave one of them out"


def _sources_read_their_keys(values: Values) -> Iterator[str]:
    """What a source never reads, where its path alone tells."""
    for section in ("sources", "validation_sources"):
        for number, source in enumerate(values[f"task.data.{section}"]):
            for key in _useless_keys(source.path):
                if getattr(source, key) is not None:
                    yield f"task.data.{section}.{number}.{key}: has no effect on {source.path}; leave it out"


def _useless_keys(path: str) -> tuple[str, ...]:
    if path == _STDLIB:
        return ("name", "split", "text_column", "document_separator")
    if re.search(r"\.(txt|md)(\.(gz|bz2|xz))?$", path):
        return ("name", "split", "text_column")
    if re.search(r"\.(jsonl?|parquet)(\.(gz|xz))?$", path):
        return ("name", "split", "document_separator")
    return ()


def _gradients_have_a_type(values: Values) -> Iterator[str]:
    gradients, precision = values["engine.gradient_dtype"], values["engine.precision"]
    if gradients == "bf16" and precision == "fp32":
        yield "engine.gradient_dtype: bf16 has no effect at engine.precision fp32; write fp32, or engine.precision=bf16"
    elif gradients == "fp32" and precision != "fp32" and values["engine.zero_stage"] == 0:
        yield (
            f"engine.gradient_dtype: fp32 is not to be had at engine.zero_stage 0 with engine.precision {precision}: "
            f"DeepSpeed has no fp32 accumulation there; write engine.zero_stage=1 or engine.gradient_dtype=bf16"
        )


RULES: tuple[Rule, ...] = (
    _heads_divide,
    _head_width_is_even,
    _activation_is_known,
    _placement_for_every_layer,
    _output_norms_are_there,
    _rope_is_complete,
    _windows_fit_the_positions,
    _vocabulary_holds_the_bytes,
    _there_is_a_source,
    _validation_is_told_once,
    _sources_read_their_keys,
    _gradients_have_a_type,
)
