"""Small decoders that architectures of transformers compute, and models of those architectures built independently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from train.config.facts.native import Architecture
from train.config.facts.native_choice import native_choice
from train.convert.rules import Rule, rules

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "vocab_size_multiple": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "norm_eps": 1e-5,
}
# Class of transformers -> settings of a decoder that it computes. 4 heads do not divide a width of 50, which only some
# architectures allow.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"norm_placement": "pre"}),
    "qwen3": ("Qwen3ForCausalLM", {"norm_placement": "pre", "qk_norm": "head"}),
    "hyperclovax": ("HyperCLOVAXForCausalLM", {"norm_placement": "peri"}),
    "glm4": ("Glm4ForCausalLM", {"norm_placement": "peri", "hidden_size": 50, "head_dim": 12}),
    "gemma3": ("Gemma3ForCausalLM", {"norm_placement": "peri", "qk_norm": "head"}),
    "olmo2": ("Olmo2ForCausalLM", {"norm_placement": "output", "qk_norm": "projection"}),
    "exaone4": ("Exaone4ForCausalLM", {"norm_placement": "output", "qk_norm": "head"}),
    "stablelm": ("StableLmForCausalLM", {"norm_placement": "pre", "norm_kind": "layernorm"}),
    "stablelm_qk": ("StableLmForCausalLM", {"norm_placement": "pre", "norm_kind": "layernorm", "qk_norm": "head"}),
}


def decoder(**overrides: Any) -> PeriLNForCausalLM:
    """Return a decoder whose norm scales are 1 + 0.4 N(0, 1), and whose logits are of order ten."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {**SHAPE, "bos_token_id": 3, "eos_token_id": 3, **overrides}
    model = PeriLNForCausalLM(PeriLNConfig(**settings)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.normal_(1.0, 0.4)
            else:
                tensor.normal_(std=(2.0 if name == "lm_head.weight" else 1.0) * tensor.shape[1] ** -0.5)
    return model


def architecture_of(model: PeriLNForCausalLM) -> Architecture:
    choice = native_choice(DecoderShape.of(model.config))
    assert choice.architecture is not None, choice
    return choice.architecture


def rules_of(model: PeriLNForCausalLM) -> list[Rule]:
    return rules(architecture_of(model), DecoderShape.of(model.config))


def built(model: PeriLNForCausalLM) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Return transformers' model with the weights of ours, and those by name."""
    architecture = architecture_of(model)
    settings = architecture.settings(DecoderShape.of(model.config))
    config = AutoConfig.for_model(architecture.model_type, **settings, pad_token_id=None, eos_token_id=3)
    native = AutoModelForCausalLM.from_config(config).eval()
    read = model.state_dict().__getitem__
    weights = {rule.native: rule.to_native(read) for rule in rules_of(model)}
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert weights.keys() == native.state_dict().keys() - tied
    native.load_state_dict(weights, strict=False)
    return native, weights


def random_native(model_type: str, **settings: Any) -> PreTrainedModel:
    """Return a random model of transformers whose vectors are away from their start, and biases zero."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1:
                tensor.normal_(std=tensor.shape[1] ** -0.5)
            elif not name.endswith("bias"):
                tensor.add_(0.4 * torch.randn_like(tensor))
    return model
