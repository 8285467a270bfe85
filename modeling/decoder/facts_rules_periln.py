"""Cross-field checks for a decoder's shape: conflicting values, and values without effect. Standard library only."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .facts_periln import ACTIVATIONS, DecoderShape, Fault
from .facts_placements_periln import PATTERNS, PLACEMENTS, LayerPlacement, NormPlacement, distinct_placements
from .facts_rope_periln import ROPE_RULES

Placements = NormPlacement | Sequence[LayerPlacement]

_SATURATING = 4.0  # factor of a stream of order one; KEEL's 2 L = 10 left gradients of 1e-43 after five layers
_LISTED_HEADS = 1000  # up to which all divisors are listed


def shape_faults(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the faults of values that conflict or have no effect.

    Args:
        values: Fields of DecoderShape, each valid by itself. A rule is skipped if a value it reads is absent, so leave
            out invalid values.
    """
    for rule in SHAPE_RULES:
        names = inspect.signature(rule).parameters
        if names.keys() <= values.keys():
            yield from rule(**{name: values[name] for name in names})


def _heads_share_keys_evenly(num_attention_heads: int, num_key_value_heads: int) -> Iterator[Fault]:
    heads, groups = num_attention_heads, num_key_value_heads
    if heads % groups:
        few = heads <= _LISTED_HEADS
        allowed = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0) if few else "one of its divisors"
        yield Fault("num_key_value_heads", f"{groups} does not divide num_attention_heads {heads}; write {allowed}")


def _head_width_is_even(head_dim: int | None, hidden_size: int, num_attention_heads: int) -> Iterator[Fault]:
    heads = num_attention_heads
    if head_dim is None and hidden_size % heads:
        message = f"{heads} does not divide hidden_size {hidden_size}; write a divisor, or give head_dim"
        yield Fault("num_attention_heads", message)
    elif head_dim is None and hidden_size // heads % 2:
        width = hidden_size // heads
        message = f"{heads} heads make each {width} wide, but rotary positions turn pairs; give an even head_dim"
        yield Fault("num_attention_heads", message)
    elif head_dim is not None and head_dim % 2:
        near = "2" if head_dim == 1 else f"{head_dim - 1} or {head_dim + 1}"
        yield Fault("head_dim", f"{head_dim} is not even, but rotary positions turn pairs; write {near}")


def _activation_is_known(hidden_act: str) -> Iterator[Fault]:
    if hidden_act not in ACTIVATIONS:
        near = difflib.get_close_matches(str(hidden_act), ACTIVATIONS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield Fault("hidden_act", f"{hidden_act!r} is none of {', '.join(ACTIVATIONS)}{hint}")


def _every_layer_has_a_placement(norm_placement: Placements, num_hidden_layers: int) -> Iterator[Fault]:
    if not isinstance(norm_placement, str) and len(norm_placement) != num_hidden_layers:
        message = f"{len(norm_placement)} names for num_hidden_layers {num_hidden_layers}"
        yield Fault("norm_placement", f"{message}; write one name, or one per layer")


def _a_pattern_has_its_layers(norm_placement: Placements, num_hidden_layers: int) -> Iterator[Fault]:
    pattern = PATTERNS.get(norm_placement) if isinstance(norm_placement, str) else None
    if pattern is not None and num_hidden_layers < pattern.least_layers:
        (alone,) = set(pattern.of_layers(num_hidden_layers))
        why = f"{pattern.name} on num_hidden_layers {num_hidden_layers} would be {alone} alone"
        yield Fault("norm_placement", f"{why}; write {alone}, or {pattern.least_layers} layers or more")


def has_output_norms(norm_placement: Placements, num_hidden_layers: int) -> bool:
    """Return whether any layer has a norm on the outputs of its sub-layers."""
    return any(each.has_output_norms for each in distinct_placements(norm_placement, num_hidden_layers))


def _frozen_norms_exist(frozen_norm_scales: str, norm_placement: Placements, num_hidden_layers: int) -> Iterator[Fault]:
    if frozen_norm_scales == "output" and not has_output_norms(norm_placement, num_hidden_layers):
        fitting = " or ".join(name for name, placement in PLACEMENTS.items() if placement.has_output_norms)
        why = "'output' has no effect, as no layer has a norm on its outputs"
        yield Fault("frozen_norm_scales", f"{why}; write none or all, or set norm_placement to {fitting}")


def _learned_scales_are_learned(
    frozen_norm_scales: str, norm_placement: Placements, num_hidden_layers: int
) -> Iterator[Fault]:
    names = [each.name for each in distinct_placements(norm_placement, num_hidden_layers)]
    if frozen_norm_scales == "all" and "lns_learned" in names:
        yield Fault("frozen_norm_scales", "'all' makes lns_learned the same as lns; write none, or use lns")


def _only_one_initialization(
    initializer_scheme: str, norm_placement: Placements, num_hidden_layers: int
) -> Iterator[Fault]:
    for placement in distinct_placements(norm_placement, num_hidden_layers):
        if initializer_scheme == "depth_scaled" and placement.unscaled_because:
            reason = f"depth_scaled makes no sense with {placement.name}: {placement.unscaled_because}"
            yield Fault("initializer_scheme", f"{reason}; write normal")


def _queries_are_normalized_once(qk_norm: str, norm_placement: Placements, num_hidden_layers: int) -> Iterator[Fault]:
    for placement in distinct_placements(norm_placement, num_hidden_layers):
        if qk_norm != "none" and placement.attention.value_norm:
            why = f"{placement.name} already normalizes queries, keys and values of each head"
            yield Fault("qk_norm", f"{qk_norm} makes no sense, as {why}; write none")


def _tanh_reads_its_settings(
    norm_kind: str, dyt_alpha: float, norm_eps: float, frozen_norm_scales: str
) -> Iterator[Fault]:
    if norm_kind != "dyt":
        if dyt_alpha != DecoderShape.dyt_alpha:
            yield Fault("dyt_alpha", f"{dyt_alpha:g} has no effect with norm_kind {norm_kind}; remove it")
        return
    if norm_eps != DecoderShape.norm_eps:
        yield Fault("norm_eps", f"{norm_eps:g} has no effect with norm_kind dyt, which divides by nothing; remove it")
    if frozen_norm_scales != "none":
        why = "dyt would still learn its alpha and its bias"
        yield Fault("frozen_norm_scales", f"{frozen_norm_scales!r} freezes scales, but {why}; write none")


def _tanh_is_not_saturated(norm_kind: str, norm_placement: Placements, num_hidden_layers: int) -> Iterator[Fault]:
    for placement in distinct_placements(norm_placement, num_hidden_layers):
        factor = placement.stream_factor.value(num_hidden_layers, num_hidden_layers)
        if norm_kind == "dyt" and factor > _SATURATING:
            why = f"{placement.name} multiplies the stream by {factor:g}, where tanh is flat: no gradient passes"
            yield Fault("norm_kind", f"dyt makes no sense, as {why}; write rmsnorm or layernorm")


SHAPE_RULES: tuple[Callable[..., Iterator[Fault]], ...] = (
    _heads_share_keys_evenly,
    _head_width_is_even,
    _activation_is_known,
    _every_layer_has_a_placement,
    _a_pattern_has_its_layers,
    _frozen_norms_exist,
    _learned_scales_are_learned,
    _only_one_initialization,
    _queries_are_normalized_once,
    _tanh_reads_its_settings,
    _tanh_is_not_saturated,
    *ROPE_RULES,
)  # the parameters of a rule name the values that it reads
