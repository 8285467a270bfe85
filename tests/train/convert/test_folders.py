"""Folders of transformers' own models as our decoder: the same logits, and refusal of what we lack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from tests.train.convert.natives import random_native
from tests.train.convert.test_rules import logits
from train.checkpoint.weights_folder import load_folder
from train.config.errors import ConfigError
from train.config.facts.native_config import meaning
from train.config.load import load
from train.convert.__main__ import configuration, main

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FULL = {"layer_types": ["full_attention"] * 2}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 16,
}
WHOLE = {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 1.0}}
GEMMA_ROPE = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}
# (model_type, settings, placement, qk_norm, largest difference): 0 where tensors are renamed alone; measured 3e-6
MODELS: dict[str, tuple[str, dict[str, Any], str, str, float]] = {
    "llama": ("llama", {"rope_parameters": LLAMA3, "head_dim": 16}, "pre", "none", 0),
    "llama, tied": ("llama", {"tie_word_embeddings": True, "hidden_act": "gelu"}, "pre", "none", 0),
    "qwen3": ("qwen3", {"hidden_size": 50, "rms_norm_eps": 1e-4}, "pre", "head", 0),
    "olmo2": ("olmo2", {"num_key_value_heads": 4}, "output", "projection", 0),
    "hyperclovax": ("hyperclovax", {"residual_multiplier": 0.5}, "peri", "none", 0),
    "hyperclovax, pre": ("hyperclovax", {"use_post_norm": False}, "pre", "none", 0),
    "glm4": ("glm4", {"attention_bias": False, **WHOLE}, "peri", "none", 5e-6),
    "gemma3": (
        "gemma3_text",
        {**FULL, "query_pre_attn_scalar": 12, "tie_word_embeddings": False, "rope_parameters": GEMMA_ROPE},
        "peri",
        "head",
        5e-6,
    ),
    "exaone4": ("exaone4", {**FULL, "sliding_window": None, "sliding_window_pattern": 0}, "output", "head", 0),
    "stablelm": ("stablelm", WHOLE, "pre", "none", 0),
}


def native(name: str, **overrides: Any) -> PreTrainedModel:
    model_type, settings, *_ = MODELS[name]
    return random_native(model_type, **(SHAPE | settings | overrides))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_is_ours(name: str, tmp_path: Path) -> None:
    _, _, placement, qk_norm, limit = MODELS[name]
    model = native(name)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "run.yaml").write_text(configuration(tmp_path / "model"))
    config: Any = load(tmp_path / "run.yaml")
    assert config.checkpoint.start_from == str(tmp_path / "model")
    assert (config.task.model.norm_placement, config.task.model.qk_norm) == (placement, qk_norm)
    ours = PeriLNForCausalLM(PeriLNConfig(**vars(config.task.model))).eval()
    load_folder(ours, tmp_path / "model")
    embedding = ours.state_dict()["model.embed_tokens.weight"]
    assert len(embedding) == 128
    assert not embedding[97:].any()

    torch.testing.assert_close(logits(ours), logits(model), atol=limit, rtol=0)


def test_an_old_config_json_means_the_same(tmp_path: Path) -> None:
    """Hub folders of 2024 state rope_theta and rope_scaling apart, and leave out what has its default."""
    native("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    old = config | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope | {"type": rope["rope_type"]}}
    for key in ("attention_bias", "mlp_bias", "attention_dropout", "hidden_act", "tie_word_embeddings"):
        del old[key]
    assert meaning(old).settings == meaning(config | {"rope_parameters": LLAMA3}).settings
    plain = {key: value for key, value in old.items() if not key.startswith("rope")}
    assert meaning(plain).settings["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e4}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another architecture": ("llama", {"model_type": "mixtral"}, "model_type 'mixtral' has no counterpart here"),
    "no architecture": ("llama", {"model_type": None}, "model_type None has no counterpart here"),
    "biases in attention": ("llama", {"attention_bias": True}, "attention_bias: True is not supported (biases"),
    "biases in the MLP": ("llama", {"mlp_bias": True}, "mlp_bias: True is not supported (biases"),
    "dropout": ("qwen3", {"attention_dropout": 0.1}, "attention_dropout: 0.1 is not supported (dropout); only 0.0 is"),
    "windows of Qwen": ("qwen3", {"use_sliding_window": True}, "use_sliding_window: True is not supported (sliding"),
    "windows of layers": (
        "qwen3",
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types: ['full_attention', 'sliding_attention'] is not supported (sliding windows)",
    ),
    "windows of Gemma": ("gemma3", {"layer_types": ...}, "sliding_attention in five of six layers"),
    "windows of EXAONE": ("exaone4", {"sliding_window": 4096}, "sliding_window: 4096 is not supported"),
    "capped logits": ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0 is not supported"),
    "capped scores": ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50.0 is not supported"),
    "another scale": ("gemma3", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar: 256 is not supported"),
    "a tied Gemma": ("gemma3", {"tie_word_embeddings": True}, "tie_word_embeddings: True is not supported"),
    "both ways": ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention: True"),
    "an attention multiplier": ("hyperclovax", {"attention_multiplier": 1.0}, "attention_multiplier: 1.0 is not"),
    "a logit multiplier": ("hyperclovax", {"logits_scaling": 0.5}, "logits_scaling: 0.5 is not supported"),
    "partial rotation": (
        "glm4",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "rope_parameters.partial_rotary_factor",
    ),
    "partial rotation by default": ("stablelm", {"rope_parameters": ...}, "rope_parameters.partial_rotary_factor"),
    "another rotation": (
        "llama",
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [1.0]}},
        "rope_parameters.rope_type: 'longrope' is none of default",
    ),
    "parallel sub-layers": ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual: True is not"),
    "quantized": ("llama", {"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
    "an unknown setting": ("llama", {"num_experts": 8}, "num_experts: 8: its meaning is not known here"),
    "another activation": ("llama", {"hidden_act": "xielu"}, "hidden_act: 'xielu' is none of"),
    "text for a number": ("llama", {"hidden_size": "wide"}, "hidden_size: 'wide' is not a whole number"),
    "no epsilon": ("llama", {"rms_norm_eps": None}, "rms_norm_eps: None is not a number"),
    "positions that are a list": ("llama", {"rope_parameters": [1]}, "rope_parameters: [1] is not a mapping"),
    "two faults": ("llama", {"mlp_bias": True, "attention_bias": True}, "mlp_bias: True"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("natives")
    for name in ("llama", "qwen3", "gemma3", "exaone4", "hyperclovax", "glm4", "stablelm"):
        native(name).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_ours_lacks_is_refused_by_name(
    case: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, changes, fragment = REFUSED[case]
    copy = Path(shutil.copytree(folders / name, tmp_path / name))
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    assert main([str(copy)]) == 2
    error = capsys.readouterr().err
    assert fragment in error
    assert all(line.startswith(f"{copy}/config.json: ") for line in error.splitlines())


def damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-2.safetensors"}}))


def other_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.norm.weight": torch.ones(3)}, folder / "model.safetensors")


def missing_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: weights[name] for name in weights if "layers.1.mlp" not in name}, folder / "model.safetensors")


DAMAGE = {
    damaged_config: "config.json: is missing or no JSON object",
    no_config: "config.json: is missing or no JSON object",
    no_weights: "contains no .safetensors file",
    cut_weights: "model.safetensors is damaged",
    missing_shard: "lacks model-2.safetensors",
    other_shape: "model.norm.weight is [48] here and [3] in the folder",
    missing_tensor: "model.layers.1.mlp.up_proj.weight is [64, 48] here and absent in the folder",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_is_exit_2(
    damage: Any, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folders / "llama", tmp_path / "llama"))
    damage(copy)
    assert main([str(copy)]) == 2
    assert DAMAGE[damage] in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def ours(folder: Path) -> PeriLNForCausalLM:
    found = meaning(json.loads((folder / "config.json").read_text()))
    return PeriLNForCausalLM(PeriLNConfig(**found.settings))


def test_a_bias_that_is_not_zero_is_refused(folders: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders / "stablelm", tmp_path / "stablelm"))
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.input_layernorm.bias"][3] = 0.1
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.layers\.1\.input_layernorm\.bias is a bias that is not zero"):
        load_folder(ours(copy), copy)


def test_norms_that_differ_by_head_are_refused(tmp_path: Path) -> None:
    native("stablelm", qk_layernorm=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"q_layernorm\.norms\.1\.weight differs from that of another head"):
        load_folder(ours(tmp_path), tmp_path)


def test_a_head_saved_beside_its_embedding_is_a_copy(tmp_path: Path) -> None:
    model = native("llama, tied")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    tables = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    copy = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(weights | copy | tables, tmp_path / "model.safetensors")
    loaded = ours(tmp_path).eval()
    load_folder(loaded, tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=0, rtol=0)


def test_a_folder_in_bf16_is_read_exactly(tmp_path: Path) -> None:
    model: Any = native("gemma3")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = ours(tmp_path)
    load_folder(loaded, tmp_path)
    norm = model.model.layers[0].input_layernorm.weight.float()
    assert torch.equal(loaded.state_dict()["model.layers.0.attention.input_norm.weight"], norm + 1)


def test_a_folder_of_this_project_is_read_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PeriLNConfig(**{key: SHAPE[key] for key in SHAPE if "token" not in key}, norm_placement=("pre", "post"))
    PeriLNForCausalLM(config).save_pretrained(tmp_path / "ours")
    (tmp_path / "run.yaml").write_text(configuration(tmp_path / "ours"))
    assert load(tmp_path / "run.yaml").task.model.norm_placement == ("pre", "post")  # type: ignore[union-attr]
    settings = json.loads((tmp_path / "ours/config.json").read_text())
    (tmp_path / "ours/config.json").write_text(json.dumps(settings | {"hidden_size": 0}))
    assert main([str(tmp_path / "ours")]) == 2
    assert "hidden_size" in capsys.readouterr().err
