"""Cross-field checks for a decoder's shape: conflicting values, and values without effect. Standard library only."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .facts_periln import ACTIVATIONS, PLACEMENTS, Fault
from .facts_rope_periln import ROPE_RULES

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


def _every_layer_has_a_placement(norm_placement: str | Sequence[str], num_hidden_layers: int) -> Iterator[Fault]:
    if not isinstance(norm_placement, str) and len(norm_placement) != num_hidden_layers:
        message = f"{len(norm_placement)} names for num_hidden_layers {num_hidden_layers}"
        yield Fault("norm_placement", f"{message}; write one name, or one per layer")


def has_output_norms(norm_placement: str | Sequence[str]) -> bool:
    """Return whether any layer has a norm on the outputs of its sub-layers."""
    names = (norm_placement,) if isinstance(norm_placement, str) else norm_placement
    return any(PLACEMENTS[name].output_norm for name in names)


def _frozen_norms_exist(frozen_norm_scales: str, norm_placement: str | Sequence[str]) -> Iterator[Fault]:
    if frozen_norm_scales == "output" and not has_output_norms(norm_placement):
        fitting = " or ".join(name for name, placement in PLACEMENTS.items() if placement.output_norm)
        why = "'output' has no effect, as no layer has a norm on its outputs"
        yield Fault("frozen_norm_scales", f"{why}; write none or all, or set norm_placement to {fitting}")


SHAPE_RULES: tuple[Callable[..., Iterator[Fault]], ...] = (
    _heads_share_keys_evenly,
    _head_width_is_even,
    _activation_is_known,
    _every_layer_has_a_placement,
    _frozen_norms_exist,
    *ROPE_RULES,
)  # the parameters of a rule name the values that it reads
