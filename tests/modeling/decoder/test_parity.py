"""The decoder's logits against transformers' models and against a plain reference, with copied random weights.

What must not pass: halving one scale or one row of any matrix moves the logits by over a hundred tolerances (see the
last test).
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .tiny_decoder import VOCAB_SIZE, tiny_decoder, tiny_tokens

TOLERANCE = 1e-5  # measured: 0 against Llama, Qwen3 and Olmo2, 2.7e-6 against Gemma2, 3.6e-6 against the reference

NORM_NAMES = {  # ours -> transformers', where post_attention_layernorm means two different things
    "llama": {"attention.input_norm": "input_layernorm", "mlp.input_norm": "post_attention_layernorm"},
    "olmo2": {"attention.output_norm": "post_attention_layernorm", "mlp.output_norm": "post_feedforward_layernorm"},
    "gemma2": {
        "attention.input_norm": "input_layernorm",
        "attention.output_norm": "post_attention_layernorm",
        "mlp.input_norm": "pre_feedforward_layernorm",
        "mlp.output_norm": "post_feedforward_layernorm",
    },
}


def shape_of(model: PeriLNForCausalLM) -> dict[str, Any]:
    """The fields that transformers' configurations call as ours does."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    heads = ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings")
    positions = ("max_position_embeddings", "rope_parameters")
    fields = {name: getattr(model.config, name) for name in (*sizes, *heads, *positions)}
    return fields | {"rms_norm_eps": model.config.norm_eps, "pad_token_id": 0}


def copy_weights(ours: PeriLNForCausalLM, theirs: PreTrainedModel, norm_names: dict[str, str]) -> None:
    """Copy every weight under transformers' name; padding rows of the vocabulary have no counterpart."""
    state = {}
    for name, tensor in ours.state_dict().items():
        for our_part, their_part in norm_names.items():
            name = name.replace(our_part, their_part)
        name = name.replace("attention.branch", "self_attn").replace("mlp.branch", "mlp")
        state[name] = tensor[:VOCAB_SIZE] if "embed_tokens" in name or "lm_head" in name else tensor
    theirs.load_state_dict(state, strict=True)
    theirs.eval()


def assert_equal_logits(ours: PeriLNForCausalLM, theirs: PreTrainedModel) -> None:
    tokens = tiny_tokens()
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=TOLERANCE, rtol=0)


def llama_like(ours: PeriLNForCausalLM) -> LlamaForCausalLM:
    theirs = LlamaForCausalLM(LlamaConfig(**shape_of(ours)))
    copy_weights(ours, theirs, NORM_NAMES["llama"])
    return theirs


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_pre_equals_llama(num_key_value_heads: int, tie_word_embeddings: bool) -> None:
    ours = tiny_decoder(
        norm_placement="pre", num_key_value_heads=num_key_value_heads, tie_word_embeddings=tie_word_embeddings
    )
    assert_equal_logits(ours, llama_like(ours))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pre_with_left_padding_equals_llama(attention: str) -> None:
    ours = tiny_decoder(norm_placement="pre")
    theirs = llama_like(ours)
    for model in (ours, theirs):
        model.set_attn_implementation(attention)
    tokens, mask = tiny_tokens(), torch.ones(2, 17, dtype=torch.long)
    mask[0, :5] = 0
    with torch.no_grad():
        ours_logits, their_logits = (model(tokens, attention_mask=mask).logits for model in (ours, theirs))
    torch.testing.assert_close(ours_logits[mask == 1], their_logits[mask == 1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "rope_parameters",
    [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_positions_equal_llamas(rope_parameters: dict[str, Any]) -> None:
    longest = 8 if rope_parameters["rope_type"] == "dynamic" else 64  # 17 tokens are beyond 8: dynamic has work to do
    ours = tiny_decoder(norm_placement="pre", rope_parameters=rope_parameters, max_position_embeddings=longest)
    assert_equal_logits(ours, llama_like(ours))


def test_pre_with_normalized_heads_equals_qwen3() -> None:
    ours = tiny_decoder(norm_placement="pre", qk_norm="head")
    theirs = Qwen3ForCausalLM(Qwen3Config(**shape_of(ours)))
    copy_weights(ours, theirs, NORM_NAMES["llama"])
    assert_equal_logits(ours, theirs)


def test_head_dim_apart_from_width_equals_qwen3() -> None:
    ours = tiny_decoder(norm_placement="pre", qk_norm="head", head_dim=20)
    theirs = Qwen3ForCausalLM(Qwen3Config(**shape_of(ours)))
    copy_weights(ours, theirs, NORM_NAMES["llama"])
    assert_equal_logits(ours, theirs)


def test_output_with_normalized_projections_equals_olmo2() -> None:
    ours = tiny_decoder(norm_placement="output", qk_norm="projection")
    theirs = Olmo2ForCausalLM(Olmo2Config(**shape_of(ours)))
    copy_weights(ours, theirs, NORM_NAMES["olmo2"])
    assert_equal_logits(ours, theirs)


def test_peri_equals_gemma2() -> None:
    ours = tiny_decoder(norm_placement="peri")
    config = Gemma2Config(
        **shape_of(ours),
        layer_types=["full_attention"] * ours.config.num_hidden_layers,
        query_pre_attn_scalar=ours.config.head_dim or 0,
        hidden_activation="silu",
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    )
    theirs = Gemma2ForCausalLM(config)
    copy_weights(ours, theirs, NORM_NAMES["gemma2"])
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter -= 1  # Gemma multiplies by 1 + weight
        theirs.model.embed_tokens.weight /= math.sqrt(ours.config.hidden_size)  # and embeddings by sqrt(width)
    assert_equal_logits(ours, theirs)


# ------------------------------------------------------------------------------------------------ a plain reference


def plain_norm(x: Tensor, weight: Tensor, kind: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True) if kind == "layernorm" else x
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def plain_rotation(x: Tensor, theta: float) -> Tensor:
    """Rotary positions of (B, H, T, K) as a product of complex numbers."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[2]), theta ** -(torch.arange(half) / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)


def plain_logits(model: PeriLNForCausalLM, tokens: Tensor) -> Tensor:
    """Compute the logits from the state dict alone, in the words of the papers."""
    config, state = model.config, model.state_dict()
    head_dim = config.hidden_size // config.num_attention_heads
    placements = config.norm_placement
    if isinstance(placements, str):
        placements = [placements] * config.num_hidden_layers

    def norm(x: Tensor, name: str) -> Tensor:
        return plain_norm(x, state[f"model.{name}.weight"], config.norm_kind, config.norm_eps)

    def attention(x: Tensor, name: str) -> Tensor:
        q, k, v = (
            (x @ state[f"model.{name}.branch.{p}_proj.weight"].T).unflatten(-1, (-1, head_dim)).transpose(1, 2)
            for p in "qkv"
        )
        theta = config.rope_parameters["rope_theta"]
        q, k = plain_rotation(q, theta), plain_rotation(k, theta)
        group = config.num_attention_heads // config.num_key_value_heads
        heads = []
        for head in range(config.num_attention_heads):
            scores = q[:, head] @ k[:, head // group].mT / math.sqrt(head_dim)
            future = torch.ones_like(scores).triu(1).bool()
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, head // group])
        return torch.cat(heads, -1) @ state[f"model.{name}.branch.o_proj.weight"].T

    def mlp(x: Tensor, name: str) -> Tensor:
        gate, up, down = (state[f"model.{name}.branch.{p}_proj.weight"].T for p in ("gate", "up", "down"))
        return ((x @ gate).sigmoid() * (x @ gate) * (x @ up)) @ down

    x = state["model.embed_tokens.weight"][tokens]
    if config.embedding_norm:
        x = norm(x, "embedding_norm")
    for index, placement in enumerate(placements):
        for kind, sub_layer in (("attention", attention), ("mlp", mlp)):
            name = f"layers.{index}.{kind}"
            y = norm(x, f"{name}.input_norm") if placement in ("pre", "peri") else x
            y = sub_layer(y, name)
            y = norm(y, f"{name}.output_norm") if placement in ("peri", "output") else y
            x = norm(x + y, f"{name}.stream_norm") if placement == "post" else x + y
    if config.final_norm:
        x = norm(x, "norm")
    return x @ state["lm_head.weight"][: config.vocab_size].T


@pytest.mark.parametrize("norm_kind", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize(
    "placement", ["post", "pre", "peri", "output", ("post", "pre", "peri"), ("output", "peri", "post")], ids=str
)
def test_logits_equal_a_plain_reference(placement: str | tuple[str, ...], norm_kind: str) -> None:
    ours = tiny_decoder(norm_placement=placement, norm_kind=norm_kind)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(tiny_tokens()).logits, plain_logits(ours, tiny_tokens()), atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize("embedding_norm", [False, True])
@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_outer_norms_and_head_equal_a_plain_reference(
    embedding_norm: bool, final_norm: bool, tie_word_embeddings: bool
) -> None:
    ours = tiny_decoder(
        norm_placement="post",
        embedding_norm=embedding_norm,
        final_norm=final_norm,
        tie_word_embeddings=tie_word_embeddings,
    )
    with torch.no_grad():
        torch.testing.assert_close(
            ours(tiny_tokens()).logits, plain_logits(ours, tiny_tokens()), atol=TOLERANCE, rtol=0
        )


@pytest.mark.parametrize("placement", ["pre", "post", "peri", "output"])
def test_every_weight_moves_the_logits(placement: str) -> None:
    """The parity tests can see each weight: halving one scale, or one row of a matrix, is far beyond the tolerance."""
    model = tiny_decoder(norm_placement=placement)
    token = tiny_tokens()[0, 0]
    with torch.no_grad():
        before = model(tiny_tokens()).logits
        for name, tensor in model.state_dict().items():
            kept = tensor.clone()
            tensor[token if "embed_tokens" in name else 0] *= 0.5
            moved = (model(tiny_tokens()).logits - before).abs().max()
            tensor.copy_(kept)
            assert moved > 100 * TOLERANCE, f"{name}: {moved}"  # measured: 0.007 and more
