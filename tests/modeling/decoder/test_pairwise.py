"""Every two values of the settings around placements, together in some decoder that trains, or refused by name.

Errors that need two settings at once are what single-setting tests miss; a cover of all pairs finds them in some forty
decoders instead of 16,848.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_placements_periln import CHOICES
from modeling.decoder.facts_rules_periln import shape_faults
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .tiny_decoder import tiny_config, tiny_tokens

LAYERS = 5
VALUES: dict[str, tuple[Any, ...]] = {
    "norm_placement": tuple(CHOICES),
    "norm_kind": ("rmsnorm", "layernorm", "dyt"),
    "qk_norm": ("none", "head", "projection"),
    "embedding_norm": (False, True),
    "gpas": (False, True),
    "attention_gate": ("none", "head", "element"),
    "residual_factor": (1.0, 0.5),
    "initializer_scheme": ("normal", "depth_scaled"),
    "frozen_norm_scales": ("none", "output", "all"),
}
WITHOUT_OUTPUT_NORMS = [name for name in CHOICES if name not in ("peri", "output", "peri_depth_scaled")]

Value = tuple[str, Any]  # of a setting
Pair = frozenset[Value]
Cell = dict[str, Any]


def together(setting: str, names: list[str], other: str, value: Any) -> set[Pair]:
    return {frozenset({(setting, name), (other, value)}) for name in names}


# What is refused, with a part of the reason: all of it, as the tests compare both ways.
REFUSED: dict[str, set[Pair]] = {
    "its output scales already shrink": together(
        "norm_placement", ["peri_depth_scaled"], "initializer_scheme", "depth_scaled"
    ),
    "LayerNorm scaling replaces it": together(
        "norm_placement", ["lns", "lns_learned"], "initializer_scheme", "depth_scaled"
    ),
    "has an initialization of its own": together(
        "norm_placement", ["deepnorm", "hybrid", "hybrid_star", "sub"], "initializer_scheme", "depth_scaled"
    ),
    "already normalizes queries, keys and values": {
        pair
        for kind in ("head", "projection")
        for pair in together("norm_placement", ["hybrid", "hybrid_star"], "qk_norm", kind)
    },
    "tanh is flat": together("norm_placement", ["keel"], "norm_kind", "dyt"),
    "dyt would still learn": together("frozen_norm_scales", ["output", "all"], "norm_kind", "dyt"),
    "makes lns_learned the same as lns": together("norm_placement", ["lns_learned"], "frozen_norm_scales", "all"),
    "no layer has a norm on its outputs": together(
        "norm_placement", WITHOUT_OUTPUT_NORMS, "frozen_norm_scales", "output"
    ),
}
REFUSED_PAIRS: set[Pair] = set().union(*REFUSED.values())


def faults(cell: Cell) -> list[str]:
    """Return the reasons why a decoder is refused."""
    return [fault.message for fault in shape_faults(vars(DecoderShape(num_hidden_layers=LAYERS, **cell)))]


def pairs_of(cell: Cell) -> set[Pair]:
    return {frozenset(pair) for pair in itertools.combinations(cell.items(), 2)}


def all_pairs() -> list[Pair]:
    """All pairs of values of two settings, in a fixed order."""
    found: list[Pair] = []
    for (one, values), (other, others) in itertools.combinations(VALUES.items(), 2):
        found += [frozenset({(one, a), (other, b)}) for a in values for b in others]
    return found


def random_cell(chance: random.Random, **fixed: Any) -> Cell:
    return {name: chance.choice(values) for name, values in VALUES.items()} | fixed


def cover(seed: int = 0) -> Iterator[Cell]:
    """Yield decoders in which every pair occurs that is not refused: each the best of many random ones."""
    chance, left = random.Random(seed), [pair for pair in all_pairs() if pair not in REFUSED_PAIRS]
    while left:
        candidates = [random_cell(chance, **dict(left[0])) for _ in range(200)]
        allowed = [cell for cell in candidates if not pairs_of(cell) & REFUSED_PAIRS]
        best = max(allowed, key=lambda cell: len(pairs_of(cell).intersection(left)))
        covered = pairs_of(best)
        left = [pair for pair in left if pair not in covered]
        yield best


COVER = list(cover())


def test_refusals_are_those_of_the_list() -> None:
    """Of two settings alone, the others at their defaults, which allow every single value."""
    for pair in all_pairs():
        reasons = [part for part, pairs in REFUSED.items() if pair in pairs]
        found = faults(dict(pair))
        assert len(found) == len(reasons), (dict(pair), found)
        assert all(part in message for part, message in zip(reasons, found, strict=True)), (dict(pair), found)


def test_no_refusal_needs_three_settings() -> None:
    chance = random.Random(0)
    for _ in range(500):
        cell = random_cell(chance)
        assert bool(faults(cell)) == bool(pairs_of(cell) & REFUSED_PAIRS), cell


def test_the_cover_is_whole_and_small() -> None:
    assert len(COVER) <= 60
    covered: set[Pair] = set().union(*(pairs_of(cell) for cell in COVER))
    assert covered == set(all_pairs()) - REFUSED_PAIRS


@pytest.mark.parametrize("cell", COVER, ids=lambda cell: "-".join(map(str, cell.values())))
def test_three_steps_lower_the_loss(cell: Cell) -> None:
    torch.manual_seed(0)
    model = PeriLNForCausalLM(tiny_config(num_hidden_layers=LAYERS, norm_eps=DecoderShape.norm_eps, **cell)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens, losses = tiny_tokens(), []
    for _ in range(4):
        loss = model(tokens, labels=tokens).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
    assert all(map(math.isfinite, losses))
    assert losses[0] > losses[1] > losses[2] > losses[3]
