"""Rotary positions: the keys of `rope_parameters` by type, their ranges, and the checks of their values.

Keys and formulas are those of transformers.modeling_rope_utils, which only logs a warning where a check fails here.
Standard library only.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .facts_periln import Fault

# Keys that each type needs, and may have, beside `rope_type` and `rope_theta`. `longrope` is not among them: its two
# sets of frequencies would need a decision per batch.
ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
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
# Smallest and largest value of each number among them, within which all frequencies are finite in fp32. yarn divides by
# the logarithm of the base, and a factor below 1 would shorten what scaling is to lengthen.
ROPE_RANGES: dict[str, tuple[float, float]] = {
    "rope_theta": (1.001, 1e15),
    "factor": (1, 1e6),
    "original_max_position_embeddings": (1, 1e9),
    "attention_factor": (1e-3, 1e3),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "mscale": (1e-3, 1e3),
    "mscale_all_dim": (1e-3, 1e3),
    "low_freq_factor": (1e-3, 1e6),
    "high_freq_factor": (1e-3, 1e6),
}
_WHOLE = ("original_max_position_embeddings",)
_ASCENDING = (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast"))
_DEFAULTS = {"yarn": {"beta_slow": 1, "beta_fast": 32}}


def _keys_are_those_of_the_type(rope_parameters: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield missing, unused or invalid keys."""
    kind = rope_parameters.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        yield _fault("rope_type", f"{_shown(kind)} is none of {', '.join(ROPE_KEYS)}")
        return
    needed, allowed = ROPE_KEYS[kind]
    readable = ("rope_type", "rope_theta", *needed, *allowed)
    for key in needed:
        if key not in rope_parameters:
            yield _fault(key, f"rope_type {kind!r} needs it, but it is missing")
    for key, value in rope_parameters.items():
        if key not in readable:
            near = difflib.get_close_matches(key[:80], readable, n=1)
            remedy = f"did you mean rope_parameters.{near[0]}?" if near else f"it reads {', '.join(readable)}"
            yield _fault(key[:80], f"rope_type {kind!r} does not read it; {remedy}")
        elif key != "rope_type" and (message := _value_fault(key, value)):
            yield _fault(key, message)


def _value_fault(key: str, value: Any) -> str | None:
    """Return why a value is not of its key's type or range; None if it is."""
    if key == "truncate":
        return None if isinstance(value, bool) else f"{_shown(value)} is not a truth value; write true or false"
    (least, most), whole = ROPE_RANGES[key], key in _WHOLE
    if (type(value) is int or (type(value) is float and not whole)) and least <= value <= most:
        return None
    return f"{_shown(value)} is not a {'whole ' * whole}number from {least:g} to {most:g}; write one"


def _values_agree(rope_parameters: Mapping[str, Any], max_position_embeddings: int) -> Iterator[Fault]:
    """Yield values that conflict, or that another one overrides; invalid ones are left to the rule above."""
    kind = rope_parameters.get("rope_type")
    defaults = _DEFAULTS.get(kind, {}) if isinstance(kind, str) else {}
    valid = defaults | {
        key: value for key, value in rope_parameters.items() if key in ROPE_RANGES and not _value_fault(key, value)
    }
    for low, high in _ASCENDING:
        if low in valid and high in valid and valid[low] >= valid[high]:
            yield _fault(high, f"{valid[high]} is not above {low} ({valid[low]}); raise it, or lower {low}")
    for key, other in (("mscale", "mscale_all_dim"), ("mscale_all_dim", "mscale")):
        if key in valid and (other not in valid or "attention_factor" in valid):
            why = f"without {other}" if other not in valid else "together with attention_factor"
            yield _fault(key, f"has no effect {why}; remove it")
    original = valid.get("original_max_position_embeddings", 1)
    if original > max_position_embeddings:
        message = f"{original} exceeds max_position_embeddings ({max_position_embeddings}); write that or less"
        yield _fault("original_max_position_embeddings", message)


def _head_is_wide_enough(
    rope_parameters: Mapping[str, Any], head_dim: int | None, hidden_size: int, num_attention_heads: int
) -> Iterator[Fault]:
    width = hidden_size // num_attention_heads if head_dim is None else head_dim
    if rope_parameters.get("rope_type") == "dynamic" and width == 2:
        message = "'dynamic' divides by the width of a head minus 2, which is 0; use wider heads, or another type"
        yield _fault("rope_type", message)


def _fault(key: str, message: str) -> Fault:
    return Fault(f"rope_parameters.{key}", message)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


ROPE_RULES: tuple[Callable[..., Iterator[Fault]], ...] = (
    _keys_are_those_of_the_type,
    _values_agree,
    _head_is_wide_enough,
)  # the parameters of a rule name the values that it reads
