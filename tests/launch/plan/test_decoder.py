"""Counted in closed form and counted on the built model: the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.plan.decoder import DecoderWorkload, narrower_heads
from launch.plan.workload import workload_of
from modeling.decoder.facts_counts_periln import count_frozen_scales, count_parameters, flops_per_token
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_placements_periln import CHOICES, PLACEMENTS
from train.__main__ import describe
from train.config.load import load
from train.config.run import RunConfig
from train.config.tasks.language_model import DecoderConfig

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs/language_model").glob("*.yaml"))
SMALL = DecoderConfig(
    vocab_size=300,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=len(PLACEMENTS),
    num_attention_heads=6,
    num_key_value_heads=6,
    max_position_embeddings=64,
)
MIXED = tuple(PLACEMENTS)
VARIANTS: list[dict[str, Any]] = [
    *({"norm_placement": name} for name in CHOICES),
    {"norm_placement": MIXED},
    {"norm_placement": MIXED, "gpas": True, "attention_gate": "head"},
    {"norm_placement": "sub", "norm_kind": "dyt", "attention_gate": "element", "num_key_value_heads": 2},
    {"tie_word_embeddings": True},
    {"num_key_value_heads": 2},
    {"num_key_value_heads": 1, "head_dim": 20},
    {"qk_norm": "head"},
    {"qk_norm": "projection", "num_key_value_heads": 3},
    {"frozen_norm_scales": "output"},
    {"frozen_norm_scales": "output", "norm_placement": MIXED, "gpas": True},
    {"frozen_norm_scales": "all", "embedding_norm": True},
    {"embedding_norm": True, "final_norm": False, "norm_kind": "layernorm"},
    {"vocab_size_multiple": 1},
]


def described(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> tuple[int, int, int]:
    """Return what `python -m train CONFIG --describe` prints: all, without the vocabulary, FLOPs per token."""
    assert describe(config) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith(("parameters", "  without"))]
    flops = next(line.split()[4] for line in lines if line.startswith("training FLOPs"))
    whole, without = (int(count.replace(",", "")) for count in counts)
    return whole, without, int(flops.replace(",", ""))


def counted(config: RunConfig) -> tuple[int, int, int]:
    work = work_of(config)
    return work.counts.total, work.counts.without_vocabulary, round(flops_per_token(work.model, work.tokens))


def work_of(config: RunConfig) -> DecoderWorkload:
    work = workload_of(config)
    assert isinstance(work, DecoderWorkload)
    return work


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_counted_as_described(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert counted(load(path)) == described(load(path), capsys)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_switch_of_the_decoder_is_counted(variant: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config = load(CONFIGS[0])
    config = replace(config, task=replace(work_of(config).task, model=replace(SMALL, **variant)))
    assert counted(config) == described(config, capsys)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_groups_and_frozen_scales_are_those_of_the_model(variant: dict[str, Any]) -> None:
    from train.tasks.language_model import decoder

    task = replace(work_of(load(CONFIGS[0])).task, model=replace(SMALL, **variant))
    model = decoder(task)
    roles = model.parameter_roles()
    by_role = {role: 0 for role in ("matrix", "embedding", "output_norm", "norm_or_bias")}
    for name, parameter in model.named_parameters():
        by_role[roles[name]] += parameter.numel()
    assert tuple(by_role.values()) == count_parameters(DecoderShape.of(task.model)).groups
    saved = {name: tensor for name, tensor in model.state_dict().items() if name not in dict(model.named_parameters())}
    saved.pop("lm_head.weight", None)  # tied: the embedding's
    assert sum(tensor.numel() for tensor in saved.values()) == count_frozen_scales(DecoderShape.of(task.model))


def test_narrower_heads_keep_the_parameters() -> None:
    model = work_of(load(str(ROOT / "configs/language_model/3.2b.yaml"))).model
    assert model.head_width == 160
    heads = narrower_heads(model)
    assert heads == {"num_attention_heads": 20, "num_key_value_heads": 10}
    other = replace(model, **heads)
    assert other.head_width == 128
    assert count_parameters(other).without_vocabulary == count_parameters(model).without_vocabulary == 3_146_058_240


@pytest.mark.parametrize(
    ("variant", "heads"),
    [
        (
            {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4},
            {"head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8},
        ),
        ({"num_attention_heads": 16, "num_key_value_heads": 1}, {}),  # keys are 160 wide
        ({"num_attention_heads": 16, "qk_norm": "head"}, {}),  # norms of 160
    ],
    ids=str,
)
def test_a_width_of_its_own_is_overridden_and_an_impossible_one_is_not_offered(
    variant: dict[str, Any], heads: dict[str, int]
) -> None:
    assert narrower_heads(DecoderShape(hidden_size=2560, **variant)) == heads
