"""Facts of the decoder: read without torch, equal to the built model, part of an exported folder."""

import re
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
    DecoderShape,
    Fault,
    loss_chunk_tokens,
)
from modeling.decoder.facts_placements_periln import (
    CHOICES,
    ONE,
    PLACEMENTS,
    LayerPlacement,
    NormPlacement,
    Placement,
    SubLayer,
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
    assert get_args(LayerPlacement) == tuple(PLACEMENTS)
    assert get_args(NormPlacement) == tuple(CHOICES)
    assert [placement.name for placement in CHOICES.values()] == list(CHOICES)
    assert len({placement.title for placement in CHOICES.values()}) == len(CHOICES)


def test_no_two_placements_are_the_same() -> None:
    def facts(each: Placement) -> tuple[object, ...]:
        constants = (each.stream_factor, each.input_factor, each.input_scale, each.output_scale)
        return (*each.sub_layers, *constants, each.initialization)

    assert len({facts(each) for each in PLACEMENTS.values()}) == len(PLACEMENTS)


@pytest.mark.parametrize("sub_layer", [each for p in PLACEMENTS.values() for each in p.sub_layers], ids=str)
def test_an_equation_shows_the_norms_of_its_sub_layer(sub_layer: SubLayer) -> None:
    equation = sub_layer.equation
    assert len(re.findall(r"norm\((?!x\) \+)", equation)) == sub_layer.num_norms
    assert bool(re.search(r"f\((i )?norm\(", equation)) == (sub_layer.input_norm or sub_layer.normalizes_first)
    assert ("norm(f(" in equation) == sub_layer.output_norm
    assert equation.startswith("norm(") == sub_layer.stream_norm


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=lambda placement: placement.name)
def test_an_equation_shows_the_constants_of_its_placement(placement: Placement) -> None:
    for each in placement.sub_layers:
        assert ("r x" in each.equation) == (placement.stream_factor is not ONE)
        assert ("i norm" in each.equation) == (placement.input_factor is not ONE)


def test_one_name_stands_for_all_layers() -> None:
    assert placements_per_layer("post", 3) == ("post", "post", "post")
    assert placements_per_layer(["post", "pre"], 2) == ("post", "pre")


def test_a_pattern_names_every_layer() -> None:
    assert placements_per_layer("mix", 12) == ("post",) * 3 + ("pre",) * 9
    assert placements_per_layer("mix", 7) == ("post",) + ("pre",) * 6
    assert placements_per_layer("hybrid_star", 3) == ("pre", "hybrid", "hybrid")


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
        ({"norm_placement": "mix", "num_hidden_layers": 3}, ("norm_placement", "would be pre alone; write pre, or 4")),
        ({"norm_placement": "lns_learned", "frozen_norm_scales": "all"}, ("frozen_norm_scales", "use lns")),
        ({"norm_placement": "hybrid_star", "qk_norm": "head"}, ("qk_norm", "hybrid already normalizes")),
        ({"dyt_alpha": 0.8}, ("dyt_alpha", "no effect with norm_kind rmsnorm; remove it")),
        ({"norm_kind": "dyt", "norm_eps": 1e-5}, ("norm_eps", "no effect with norm_kind dyt")),
        ({"norm_kind": "dyt", "frozen_norm_scales": "all"}, ("frozen_norm_scales", "still learn its alpha")),
        ({"norm_kind": "dyt", "norm_placement": "keel"}, ("norm_kind", "multiplies the stream by 48")),
        *(
            (
                {"initializer_scheme": "depth_scaled", "norm_placement": name},
                ("initializer_scheme", f"sense with {name}:"),
            )
            for name in ("lns", "lns_learned", "peri_depth_scaled", "deepnorm", "hybrid", "sub")
        ),
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


SWITCHES: list[dict[str, Any]] = [
    {},
    {"qk_norm": "head"},
    {"qk_norm": "projection", "tie_word_embeddings": True},
    {"gpas": True, "embedding_norm": True, "attention_gate": "head"},
    {"norm_kind": "dyt", "norm_eps": 1e-6, "attention_gate": "element"},
    {"norm_kind": "layernorm", "final_norm": False},
]


@pytest.mark.parametrize("placement", [*CHOICES, tuple(PLACEMENTS)], ids=str)
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_counts_are_those_of_the_built_model(placement: Any, switches: dict[str, Any]) -> None:
    shape = tiny_config().shape.__dict__ | {"norm_placement": placement, "num_hidden_layers": len(PLACEMENTS)}
    if faults := list(shape_faults(shape | switches)):
        pytest.skip(f"refused: {faults[0].message}")
    config = tiny_config(**shape | switches)
    model, counts = PeriLNForCausalLM(config), count_parameters(config.shape)
    assert counts.total == model.num_parameters()
    assert counts.without_vocabulary == model.num_parameters(exclude_embeddings=True)
    assert counts.output_norms == sum(p.numel() for name, p in model.named_parameters() if "output_norm" in name)
    linear = [module for module in model.model.modules() if isinstance(module, nn.Linear)]
    products = sum(module.weight.numel() for module in linear) + config.vocab_size * config.hidden_size
    assert flops_per_token(config.shape, 16) == 6 * (products + len(PLACEMENTS) * 4 * 12 * 16)  # L H K T
    frozen = shape | switches | {"frozen_norm_scales": "all"}
    if not list(shape_faults(frozen)):
        gates = config.gpas * len(PLACEMENTS)
        assert count_frozen_scales(tiny_config(**frozen).shape) == counts.norms - gates


@pytest.mark.parametrize("vocab_size", [90, 128, 2**21, 2**22, 2**30])
def test_the_logits_of_a_chunk_keep_to_their_limit(vocab_size: int) -> None:
    tokens = loss_chunk_tokens(vocab_size, "cpu")
    assert tokens == 1 or tokens * vocab_size <= 2**22 < 2 * tokens * vocab_size
    assert loss_chunk_tokens(vocab_size, "cuda") == loss_chunk_tokens(vocab_size, "xpu") >= tokens
