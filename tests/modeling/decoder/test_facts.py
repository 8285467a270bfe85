"""Facts of the decoder: read without torch, equal to the built model, part of an exported folder."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import nn
from transformers.activations import ACT2FN

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.facts_counts_periln import count_frozen_scales, count_parameters, flops_per_token
from modeling.decoder.facts_periln import (
    ACTIVATIONS,
    PLACEMENTS,
    DecoderShape,
    Fault,
    NormPlacement,
    loss_chunk_tokens,
    placements_per_layer,
)
from modeling.decoder.facts_rope_periln import ROPE_KEYS
from modeling.decoder.facts_rules_periln import SHAPE_RULES, shape_faults
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .tiny_decoder import tiny_config

ROOT = Path(__file__).parents[3]
FACTS = sorted((ROOT / "modeling/decoder").glob("facts_*.py"))
DEFAULTS = {field.name: getattr(DecoderShape(), field.name) for field in fields(DecoderShape)}


@pytest.mark.parametrize("file", FACTS, ids=lambda file: file.name)
def test_facts_are_read_without_torch(file: Path) -> None:
    code = f"import modeling.decoder.{file.stem}, sys; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_facts_travel_with_an_exported_folder(tmp_path: Path) -> None:
    PeriLNForCausalLM(tiny_config()).save_pretrained(tmp_path)
    for file in FACTS:
        assert (tmp_path / file.name).read_text() == file.read_text()


# --------------------------------------------------------------------------------------------------------- placements


def test_type_and_records_name_the_same_placements() -> None:
    assert get_args(NormPlacement) == tuple(PLACEMENTS)
    assert [placement.name for placement in PLACEMENTS.values()] == list(PLACEMENTS)


def test_no_two_placements_have_the_same_norms() -> None:
    norms = {(each.input_norm, each.output_norm, each.stream_norm) for each in PLACEMENTS.values()}
    assert len(norms) == len(PLACEMENTS)


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=lambda placement: placement.name)
def test_an_equation_shows_the_norms_of_its_placement(placement: Any) -> None:
    equation = placement.equation
    assert equation.count("norm(") == placement.num_norms
    assert ("f(norm(" in equation) == placement.input_norm
    assert ("norm(f(" in equation) == placement.output_norm
    assert equation.startswith("norm(") == placement.stream_norm


def test_one_name_stands_for_all_layers() -> None:
    assert placements_per_layer("post", 3) == ("post", "post", "post")
    assert placements_per_layer(["post", "pre"], 2) == ("post", "pre")


# -------------------------------------------------------------------------------------------------------------- rules


def test_the_defaults_have_no_fault() -> None:
    assert not list(shape_faults(DEFAULTS))


def test_rules_read_fields_of_the_shape() -> None:
    read = {name for rule in SHAPE_RULES for name in rule.__annotations__ if name != "return"}
    assert read < DEFAULTS.keys()


def test_a_rule_without_its_values_is_skipped() -> None:
    wrong = {"num_attention_heads": 8, "num_key_value_heads": 3, "hidden_act": "sillu"}
    assert [fault.key for fault in shape_faults(wrong)] == ["num_key_value_heads", "hidden_act"]
    del wrong["num_attention_heads"]
    assert [fault.key for fault in shape_faults(wrong)] == ["hidden_act"]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"hidden_act": "sillu"}, ("hidden_act", "did you mean silu?")),
        ({"head_dim": 1}, ("head_dim", "write 2")),
        ({"head_dim": 7}, ("head_dim", "write 6 or 8")),
        ({"norm_placement": "pre", "frozen_norm_scales": "output"}, ("frozen_norm_scales", "to peri or output")),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": "2"}},
            ("rope_parameters.factor", "'2' is not a number from 1 to 1e+06"),
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": True}}, ("rope_parameters.factor", "True is not")),
    ],
    ids=str,
)
def test_a_fault_names_its_key_and_a_way_out(values: dict[str, Any], fault: tuple[str, str]) -> None:
    (found,) = shape_faults(DEFAULTS | values)
    assert isinstance(found, Fault)
    assert found.key == fault[0]
    assert fault[1] in found.message


def test_the_activations_are_those_of_transformers() -> None:
    assert set(ACTIVATIONS) <= set(ACT2FN)


@pytest.mark.parametrize("kind", ROPE_KEYS)
def test_every_kind_of_rope_is_written_and_read_back(kind: str, tmp_path: Path) -> None:
    """What transformers adds to `rope_parameters` is accepted when it is read."""
    needed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32, "factor": 2.0}
    read = {key: needed[key] for key in (*ROPE_KEYS[kind][0], *ROPE_KEYS[kind][1]) if key in needed}
    config = tiny_config(rope_parameters={"rope_type": kind, "rope_theta": 500.0} | read)
    config.save_pretrained(tmp_path)
    assert PeriLNConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


# ------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("placement", [*PLACEMENTS, tuple(PLACEMENTS)], ids=str)
@pytest.mark.parametrize("qk_norm", ["none", "head", "projection"])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_those_of_the_built_model(placement: Any, qk_norm: str, tied: bool) -> None:
    config = tiny_config(
        norm_placement=placement,
        num_hidden_layers=len(PLACEMENTS),
        qk_norm=qk_norm,
        tie_word_embeddings=tied,
        frozen_norm_scales="none",
    )
    model, counts = PeriLNForCausalLM(config), count_parameters(config.shape)
    assert counts.total == model.num_parameters()
    assert counts.without_vocabulary == model.num_parameters(exclude_embeddings=True)
    assert counts.output_norms == sum(p.numel() for name, p in model.named_parameters() if "output_norm" in name)
    linear = [module for module in model.model.modules() if isinstance(module, nn.Linear)]
    products = sum(module.weight.numel() for module in linear) + config.vocab_size * config.hidden_size
    assert flops_per_token(config.shape, 16) == 6 * (products + len(PLACEMENTS) * 4 * 12 * 16)  # L H K T
    frozen = tiny_config(**config.shape.__dict__ | {"frozen_norm_scales": "all"})
    assert count_frozen_scales(frozen.shape) == counts.norms


@pytest.mark.parametrize("vocab_size", [90, 128, 2**21, 2**22, 2**30])
def test_the_logits_of_a_chunk_keep_to_their_limit(vocab_size: int) -> None:
    tokens = loss_chunk_tokens(vocab_size, "cpu")
    assert tokens == 1 or tokens * vocab_size <= 2**22 < 2 * tokens * vocab_size
    assert loss_chunk_tokens(vocab_size, "cuda") == loss_chunk_tokens(vocab_size, "xpu") >= tokens
