"""The placement of the norms is read from the data flow, whatever the modules are called."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from analysis.inspect.architecture import Architecture, ArchitectureError, recognize
from analysis.measure.activations import ActivationProbe
from modeling.decoder.facts_placements_periln import CHOICES
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from modeling.decoder.residual_periln import Residual
from tests.modeling.decoder.tiny_decoder import tiny_decoder, tiny_tokens
from train.tasks.language_model import LanguageModel

STORIES = Path(__file__).parents[4] / "shared/data/checkpoints/stories260K-hf"

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SHAPE = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
FALCON_SHAPE = {name: value for name, value in SHAPE.items() if name != "head_dim"}
OPT_SHAPE = SHAPE | {"ffn_dim": 48, "word_embed_proj_dim": 32}


def built(model_type: str, **settings: Any) -> nn.Module:
    """A random model whose zero-initialised scales and biases are moved away from zero."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
    return model


def norms(architecture: Architecture, layer: int = 0) -> list[str | None]:
    """Input and output norm of attention, then of the MLP."""
    found = architecture.layers[layer]
    assert found.attention is not None
    assert found.mlp is not None
    attention, mlp = found.attention, found.mlp
    return [attention.input_norm, attention.output_norm, mlp.input_norm, mlp.output_norm]


LLAMA_NAMES = ["input_layernorm", None, "post_attention_layernorm", None]
GEMMA2_NAMES = [
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
]
OLMO2_NAMES = [None, "post_attention_layernorm", None, "post_feedforward_layernorm"]


@pytest.mark.parametrize(
    ("model_type", "settings", "placement", "names"),
    [
        ("llama", SHAPE, "pre", LLAMA_NAMES),
        ("mistral", SHAPE, "pre", LLAMA_NAMES),
        ("qwen3", SHAPE, "pre", LLAMA_NAMES),
        ("gemma", SHAPE, "pre", LLAMA_NAMES),
        ("gemma2", SHAPE, "peri", GEMMA2_NAMES),
        ("gemma3_text", SHAPE, "peri", GEMMA2_NAMES),
        ("olmo2", SHAPE, "output", OLMO2_NAMES),
        ("olmo3", SHAPE, "output", OLMO2_NAMES),
        ("exaone4", SHAPE, "output", OLMO2_NAMES),
        (
            "glm4",
            SHAPE,
            "peri",
            ["input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"],
        ),
        ("hyperclovax", SHAPE | {"use_post_norm": False}, "pre", LLAMA_NAMES),
        (
            "hyperclovax",
            SHAPE | {"use_post_norm": True, "residual_multiplier": 0.5},
            "peri",
            ["input_layernorm", "post_norm1", "post_attention_layernorm", "post_norm2"],
        ),
        ("granite", SHAPE | {"residual_multiplier": 0.22}, "pre", LLAMA_NAMES),
        ("phi", SHAPE, "parallel pre", ["input_layernorm", None, "input_layernorm", None]),
        ("cohere", SHAPE, "parallel pre", ["input_layernorm", None, "input_layernorm", None]),
        ("gpt_neox", SHAPE | {"use_parallel_residual": True}, "parallel pre", LLAMA_NAMES),
        ("gpt_neox", SHAPE | {"use_parallel_residual": False}, "pre", LLAMA_NAMES),
        ("gpt2", GPT2_SHAPE, "pre", ["ln_1", None, "ln_2", None]),
        ("opt", OPT_SHAPE, "pre", ["self_attn_layer_norm", None, "final_layer_norm", None]),
        ("opt", OPT_SHAPE | {"do_layer_norm_before": False}, "post", [None, None, None, None]),
        ("falcon", FALCON_SHAPE, "parallel pre", ["input_layernorm", None, "input_layernorm", None]),
        (
            "bitnet",
            SHAPE,
            "sub",
            LLAMA_NAMES,  # with attn_sub_norm and ffn_sub_norm before the last matrices
        ),
        ("qwen3_moe", SHAPE | {"num_experts": 6, "num_experts_per_tok": 2}, "pre", LLAMA_NAMES),
    ],
)
def test_placement_and_names_of_known_models(
    model_type: str, settings: dict[str, Any], placement: str, names: list[str | None]
) -> None:
    found = recognize(built(model_type, **settings))
    assert [layer.placement for layer in found.layers] == [placement] * 3, found.layers[0].reason
    assert norms(found, 1) == names


def test_a_residual_multiplier_is_found() -> None:
    layer = recognize(built("granite", **SHAPE, residual_multiplier=0.22)).layers[2]
    assert layer.attention is not None
    assert layer.mlp is not None
    assert [layer.attention.scale, layer.mlp.scale] == pytest.approx([0.22, 0.22], rel=1e-5)


def test_post_norms_of_opt_are_named() -> None:
    layer = recognize(built("opt", **OPT_SHAPE, do_layer_norm_before=False)).layers[0]
    assert layer.attention is not None
    assert layer.mlp is not None
    assert [layer.attention.stream_norm, layer.mlp.stream_norm] == ["self_attn_layer_norm", "final_layer_norm"]
    assert layer.mlp.module == "fc1, fc2"


def test_a_branch_that_adds_the_residual_itself_is_unknown_with_the_reason() -> None:
    found = recognize(built("bloom", vocab_size=96, hidden_size=32, n_layer=2, n_head=4))
    assert found.placement == "unknown"
    assert "adds the residual itself" in found.layers[0].reason or "may add" in found.layers[0].reason
    assert [site.name for site in found.sites()] == ["embedding", "mlp.stream", "mlp.stream", "final_norm"]


_OTHER = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_BART = {
    **{"vocab_size": 96, "d_model": 32, "decoder_layers": 2, "encoder_layers": 1, "decoder_attention_heads": 4},
    **{"encoder_attention_heads": 4, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "pad_token_id": 1},
    **{"bos_token_id": 0, "eos_token_id": 2},
}
_ONE_EXPERT = {"num_key_value_heads": 2, "num_local_experts": 1, "num_experts_per_tok": 1}


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("bart", _BART, "2 attention modules (self_attn, encoder_attn) in BartDecoderLayer"),
        ("bert", {**_OTHER, "is_decoder": True}, "no MLP module in BertLayer"),
        (
            "mpt",
            {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4},
            "its sub-layers add up to norm_2 + mlp",
        ),
        (
            "minimax",  # post, shifted by one norm: the branch starts at the norm of the layer before
            {**_OTHER, **_ONE_EXPERT, "layer_types": ["full_attention"] * 2},
            "but returns post_attention_layernorm + mlp",
        ),
    ],
)
def test_blocks_of_other_forms_are_unknown_with_the_reason(
    model_type: str, settings: dict[str, Any], reason: str
) -> None:
    found = recognize(built(model_type, **settings))
    assert found.placement == "unknown"
    assert [reason in layer.reason for layer in found.layers] == [True, True]


def test_blocks_without_attention_are_unknown() -> None:
    found = recognize(built("mamba", vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4))
    assert found.placement == "unknown"
    assert "no attention module" in found.layers[0].reason


SAME_FLOW = {"lns_learned": "pre", "peri_depth_scaled": "peri"}  # that differ in their initialization alone
SWITCHES: dict[str, Any] = {"qk_norm": "head", "attention_gate": "element", "norm_kind": "layernorm"}


@pytest.mark.parametrize("num_layers", [4, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("placement", CHOICES)
def test_our_decoder(placement: str, dtype: torch.dtype, num_layers: int) -> None:
    model: Any = tiny_decoder(norm_placement=placement, num_hidden_layers=num_layers)
    found = recognize(model.to(dtype))
    assert found.placement == SAME_FLOW.get(placement, placement), found.summary()
    assert found.final_norm == "model.norm"
    assert found.layers[1].name == "model.layers.1"


@pytest.mark.parametrize("placement", [name for name in CHOICES if "hybrid" not in name])
def test_switches_hide_no_placement(placement: str) -> None:
    model = tiny_decoder(norm_placement=placement, num_hidden_layers=4, gpas=True, residual_factor=0.5, **SWITCHES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gpas_gate"):
                parameter.zero_()
    found = recognize(model)
    assert found.placement == SAME_FLOW.get(placement, placement), found.summary()
    assert found.layers[2].mlp is not None
    assert found.layers[2].mlp.scale == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("placement", "factor"),
    [
        *((name, "the block returns its stream times 0.685") for name in ("pre", "peri", "output", "lns", "sub")),
        ("hybrid", "the block returns its stream times 0.8277"),
        ("post", "the attention multiplies the input by 1 and the stream by 0.8277"),
        ("deepnorm", "the attention multiplies the input by 1 and the stream by 1.392"),
        ("keel", "the attention multiplies the input by 1 and the stream by 6.621"),
    ],
)
def test_a_stream_that_shrinks_is_unknown_with_the_reason(placement: str, factor: str) -> None:
    model = tiny_decoder(norm_placement=placement, num_hidden_layers=4, gpas=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gpas_gate"):
                parameter.fill_(0.3)  # 1 - silu(0.3) = 0.8277
    found = recognize(model)
    assert found.placement == "unknown"
    for layer in found.layers:
        assert layer.reason.startswith(f"{factor}, as no known placement does")


@pytest.mark.parametrize("placement", ["deepnorm", "keel"])
def test_a_wrong_factor_of_the_stream_is_unknown_with_the_reason(placement: str) -> None:
    model = tiny_decoder(norm_placement=placement)
    for module in model.modules():
        if isinstance(module, Residual):
            module.stream_factor = 2.0
    found = recognize(model)
    assert found.placement == "unknown"
    factors = "the attention multiplies the input by 1 and the stream by 2, as no known placement does"
    assert found.layers[0].reason == factors


def test_each_layer_has_its_own_placement() -> None:
    found = recognize(tiny_decoder(norm_placement=["post", "peri", "pre"]))
    assert [layer.placement for layer in found.layers] == ["post", "peri", "pre"]
    assert found.placement == "mixed"
    assert found.summary() == "mixed: post 0, peri 1, pre 2"


def test_a_branch_that_writes_nothing_yet_hides_nothing() -> None:
    model = tiny_decoder(norm_placement="peri")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert recognize(model).placement == "peri"


def test_half_precision_is_enough() -> None:
    model = built("granite", **SHAPE, residual_multiplier=0.22).to(torch.bfloat16)
    layer = recognize(model).layers[0]
    assert layer.placement == "pre"
    assert layer.mlp is not None
    assert layer.mlp.scale == pytest.approx(0.22, rel=5e-3)  # bf16 has 8 bits


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_decoder(norm_placement="peri").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recognize(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("placement", CHOICES)
def test_sites_are_those_of_training(placement: str) -> None:
    """The same names in the same order, and the same figures from one forward pass."""
    model = tiny_decoder(norm_placement=placement, num_hidden_layers=4)
    ours, training = (ActivationProbe(sites) for sites in (recognize(model).sites(), training_sites(model)))
    assert [(site.layer, site.name) for site in ours.sites] == [(site.layer, site.name) for site in training.sites]
    with torch.no_grad(), ours.watching(), training.watching():
        model(tiny_tokens())
    for mine, other in zip(ours.rows(), training.rows(), strict=True):
        assert mine == {key: other[key] for key in mine}


def training_sites(model: PeriLNForCausalLM) -> list[Any]:
    return LanguageModel.probe_sites(object.__new__(LanguageModel), model)


def test_parallel_blocks_have_no_stream_between() -> None:
    names = [site.name for site in recognize(built("phi", **SHAPE)).sites()]
    assert "attention.output" in names
    assert "attention.stream" not in names


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"no nn\.ModuleList"):
        recognize(nn.Sequential(nn.Linear(3, 3)))


def test_the_stories_checkpoint_is_pre() -> None:
    if not STORIES.is_dir():
        pytest.skip("../shared/data/checkpoints/stories260K-hf is not here")
    found = recognize(AutoModelForCausalLM.from_pretrained(STORIES))
    assert found.summary() == "pre (5 layers)"
    assert norms(found) == LLAMA_NAMES
    assert math.isclose(found.layers[0].attention.scale, 1.0, rel_tol=1e-5)  # type: ignore[union-attr]
