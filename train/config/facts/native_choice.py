"""The architecture of transformers that a decoder can be exported as, or why there is none and what is nearest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product
from typing import NamedTuple

from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_placements_periln import distinct_placements
from train.config.facts.native import ARCHITECTURES, COMPUTES, Architecture, NativePlacement


class Choice(NamedTuple):
    """The architecture that computes what a decoder does, or the reasons why there is none."""

    architecture: Architecture | None
    reasons: tuple[str, ...] = ()
    nearest: str = ""  # settings to change, as overrides, for the nearest decoder that has one


def native_choice(shape: DecoderShape) -> Choice:
    """Return the architecture of transformers that computes exactly what a decoder does, if there is one."""
    reasons = [*_switches(shape), *_placements(shape)]
    if not reasons:
        candidates = _with_norms_of(shape)
        misfits = [each.misfit(shape) for each in candidates]
        for architecture, misfit in zip(candidates, misfits, strict=True):
            if misfit is None:
                return Choice(architecture)
        norms = f"norm_placement {_computed(shape).pop()} with norm_kind {shape.norm_kind} and qk_norm {shape.qk_norm}"
        reasons = [misfit for misfit in misfits if misfit] or [f"no architecture that fits has {norms}"]
    return Choice(None, tuple(reasons), _nearest(shape))


def _computed(shape: DecoderShape) -> set[NativePlacement]:
    """Return the placements that the layers compute, those without an architecture left out."""
    return {COMPUTES[name] for name in shape.layer_norm_placements if name in COMPUTES}


def _with_norms_of(shape: DecoderShape) -> list[Architecture]:
    """Return the architectures with the norms of a decoder whose layers compute one placement."""
    (placement,) = _computed(shape)
    norms = (placement, shape.norm_kind, shape.qk_norm)
    return [each for each in ARCHITECTURES if (each.placement, each.norm_kind, each.qk_norm) == norms]


def _switches(shape: DecoderShape) -> Iterator[str]:
    if shape.norm_kind == "dyt":
        yield "norm_kind dyt: no architecture has tanh in place of its norms"
    if not shape.final_norm:
        yield "final_norm false: every architecture has a norm before its head"
    if shape.gpas:
        yield "gpas true: no architecture shrinks its residual stream"
    if shape.attention_gate != "none":
        yield f"attention_gate {shape.attention_gate}: no architecture that fits gates the output of its attention"


def _placements(shape: DecoderShape) -> Iterator[str]:
    for placement in distinct_placements(shape.norm_placement, shape.num_hidden_layers):
        if placement.name not in COMPUTES:
            equations = " and ".join(dict.fromkeys(each.equation for each in placement.sub_layers))
            inner = ", with a norm inside f" * any(each.inner_norm for each in placement.sub_layers)
            yield f"norm_placement {placement.name}: no architecture that fits computes {equations}{inner}"
    if len(computed := _computed(shape)) > 1:
        yield f"norm_placement: an architecture has one placement for all layers, not {' and '.join(sorted(computed))}"


def _nearest(shape: DecoderShape) -> str:
    """Return the fewest settings to change for an architecture to fit, as overrides."""
    plain = replace(shape, final_norm=True, gpas=False, attention_gate="none", dyt_alpha=DecoderShape.dyt_alpha)
    own = () if list(_placements(shape)) else (shape.norm_placement,)
    frozen = shape.frozen_norm_scales == "output"
    placements = dict.fromkeys(each for each in COMPUTES.values() if not (frozen and each == "pre"))
    changes: list[list[str]] = []
    for placement, norm_kind, qk_norm in product(
        (*own, *placements),
        dict.fromkeys((shape.norm_kind, "rmsnorm")),
        dict.fromkeys((shape.qk_norm, "head", "projection", "none")),
    ):
        other = replace(plain, norm_placement=placement, norm_kind=norm_kind, qk_norm=qk_norm)
        if not list(_switches(other)) and any(each.misfit(other) is None for each in _with_norms_of(other)):
            changes.append([*_changes(shape, other)])
    return " ".join(min(changes, key=len))


def _changes(shape: DecoderShape, other: DecoderShape) -> Iterator[str]:
    for each in fields(DecoderShape):
        value = getattr(other, each.name)
        if value != getattr(shape, each.name) and each.name != "dyt_alpha":
            yield f"task.model.{each.name}={str(value).lower() if isinstance(value, bool) else value}"
