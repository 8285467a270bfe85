"""Parameters of a decoder: names, initialization, roles and cost."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .tiny_decoder import VOCAB_SIZE, tiny_config, tiny_decoder, tiny_tokens

EVERY_NORM: dict[str, Any] = {"embedding_norm": True, "qk_norm": "head"}


@pytest.mark.parametrize(
    ("shape", "millions"),
    [
        ({"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 8}, 402.7),
        ({"num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 16}, 1510.0),
        ({"num_hidden_layers": 32, "hidden_size": 2560, "num_attention_heads": 16}, 3146.0),
    ],
    ids=["400m", "1.5b", "3.2b"],
)
@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_sizes_are_the_papers(shape: dict[str, Any], millions: float, tie_word_embeddings: bool) -> None:
    config = PeriLNConfig(
        **shape,
        intermediate_size=4 * shape["hidden_size"],
        vocab_size=100_277,
        tie_word_embeddings=tie_word_embeddings,
    )
    with torch.device("meta"):
        model = PeriLNForCausalLM(config)
    counted = model.num_parameters(exclude_embeddings=True)
    assert counted / 1e6 == pytest.approx(millions, rel=3e-4)  # norms are up to 0.02 % of it
    vocabulary = 100_288 * shape["hidden_size"]  # 100,277 rounded up to a multiple of 64
    assert model.num_parameters() - counted == (1 if tie_word_embeddings else 2) * vocabulary


def norms_of(**overrides: Any) -> set[str]:
    names = PeriLNForCausalLM(tiny_config(num_hidden_layers=1, **overrides)).state_dict()
    return {name.removeprefix("model.").removesuffix(".weight") for name in names if "norm" in name}


def test_norms_that_a_placement_lacks_do_not_exist() -> None:
    inputs = {"layers.0.attention.input_norm", "layers.0.mlp.input_norm"}
    outputs = {"layers.0.attention.output_norm", "layers.0.mlp.output_norm"}
    streams = {"layers.0.attention.stream_norm", "layers.0.mlp.stream_norm"}
    heads = {"layers.0.attention.branch.q_norm", "layers.0.attention.branch.k_norm"}
    assert norms_of(norm_placement="pre") == inputs | {"norm"}
    assert norms_of(norm_placement="post") == streams | {"norm"}
    assert norms_of(norm_placement="peri") == inputs | outputs | {"norm"}
    assert norms_of(norm_placement="output", final_norm=False) == outputs
    assert norms_of(norm_placement="peri", **EVERY_NORM) == inputs | outputs | heads | {"embedding_norm", "norm"}


# ------------------------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize("scheme", ["normal", "depth_scaled"])
@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_every_tensor_starts_as_configured(scheme: str, tie_word_embeddings: bool) -> None:
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=128,
        intermediate_size=256,
        initializer_range=0.03,
        initializer_scheme=scheme,
        tie_word_embeddings=tie_word_embeddings,
        **EVERY_NORM,
    )
    for name, tensor in PeriLNForCausalLM(config).state_dict().items():
        if "norm" in name:
            assert (tensor == 1).all(), name
            continue
        writes_to_stream = "o_proj" in name or "down_proj" in name
        std = 0.03 / math.sqrt(2 * 3) if scheme == "depth_scaled" and writes_to_stream else 0.03
        # standard errors: std / sqrt(2 n) and std / sqrt(n), n >= 8192; 5 of them; depth scaling is a factor of 2.4
        assert abs(tensor.std() / std - 1) < 5 / math.sqrt(2 * tensor.numel()), name
        assert abs(tensor.mean() / std) < 5 / math.sqrt(tensor.numel()), name


def test_placements_start_from_the_same_matrices() -> None:
    matrices = []
    for placement in ("pre", "post", "peri", "output"):
        torch.manual_seed(0)
        state = PeriLNForCausalLM(tiny_config(norm_placement=placement)).state_dict()
        matrices.append({name: tensor for name, tensor in state.items() if "norm" not in name})
    for other in matrices[1:]:
        torch.testing.assert_close(other, matrices[0], atol=0, rtol=0)


# ------------------------------------------------------------------------------------------------------------- roles


@pytest.mark.parametrize("frozen", ["none", "output", "all"])
def test_frozen_scales_are_in_the_state_dict_but_no_parameters(frozen: str) -> None:
    model = PeriLNForCausalLM(tiny_config(norm_placement="peri", frozen_norm_scales=frozen, **EVERY_NORM))
    learnable = PeriLNForCausalLM(tiny_config(norm_placement="peri", **EVERY_NORM))
    assert model.state_dict().keys() == learnable.state_dict().keys()
    gone = dict(learnable.named_parameters()).keys() - dict(model.named_parameters()).keys()
    norms = {name for name in learnable.state_dict() if "norm" in name}
    expected = {"none": set(), "output": {name for name in norms if "output_norm" in name}, "all": norms}
    assert gone == expected[frozen]


def test_a_frozen_scale_computes_as_a_learnable_one_in_half_precision() -> None:
    frozen, learnable = (
        tiny_decoder(norm_placement="peri", frozen_norm_scales=scales).bfloat16() for scales in ("all", "none")
    )
    for name, buffer in frozen.named_buffers():
        if "norm" in name:
            buffer.data = buffer.data.float()  # as DeepSpeed leaves buffers
    logits = frozen(tiny_tokens()).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits, learnable(tiny_tokens()).logits, atol=0, rtol=0)


def roles_of(**overrides: Any) -> dict[str, str]:
    roles = PeriLNForCausalLM(tiny_config(num_hidden_layers=1, **overrides)).parameter_roles()
    return {name.removeprefix("model.").removesuffix(".weight"): role for name, role in roles.items()}


def test_every_parameter_has_its_role() -> None:
    matrices = [f"layers.0.attention.branch.{name}_proj" for name in "qkvo"]
    matrices += [f"layers.0.mlp.branch.{name}_proj" for name in ("gate", "up", "down")]
    norms = ["layers.0.attention.branch.q_norm", "layers.0.attention.branch.k_norm", "embedding_norm", "norm"]
    norms += ["layers.0.attention.input_norm", "layers.0.mlp.input_norm"]
    outputs = ["layers.0.attention.output_norm", "layers.0.mlp.output_norm"]
    assert roles_of(**EVERY_NORM) == (
        dict.fromkeys([*matrices, "lm_head"], "matrix")
        | dict.fromkeys(norms, "norm_or_bias")
        | dict.fromkeys(outputs, "output_norm")
        | {"embed_tokens": "embedding"}
    )


def test_a_tied_head_is_the_embedding() -> None:
    roles = roles_of(tie_word_embeddings=True)
    assert roles["embed_tokens"] == "embedding"
    assert "lm_head" not in roles


def test_a_norm_on_the_stream_is_no_output_norm() -> None:
    assert roles_of(norm_placement="post")["layers.0.mlp.stream_norm"] == "norm_or_bias"


# -------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}, {"head_dim": 20}, {"num_key_value_heads": 1}])
def test_flops_per_token_are_those_of_torchs_counter(overrides: dict[str, Any]) -> None:
    """torch counts the products of forward and backward, and with eager attention the upper triangle too."""
    model, tokens = tiny_decoder(**overrides).train(), tiny_tokens(2, 16)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(tokens, shift_labels=tokens).loss.backward()
    counted = counter.get_total_flops() / tokens.numel()
    upper_triangle = 6 * 3 * 4 * overrides.get("head_dim", 12) * 16
    padded = model.lm_head.out_features
    padding = 6 * (padded - VOCAB_SIZE) * 48  # computed for the sake of alignment, not counted as work
    head_gradient = 2 * padded * 48  # accumulated in place (addmm_), which torch's counter does not know
    assert model.flops_per_token(16) + upper_triangle + padding == counted + head_gradient


def test_flops_per_token_of_the_400m_shape_by_hand() -> None:
    with torch.device("meta"):
        model = PeriLNForCausalLM(PeriLNConfig(vocab_size=100_277))
    in_products = 24 * (4 * 1024**2 + 3 * 1024 * 4096) + 100_277 * 1024
    assert model.flops_per_token(8192) == 6 * in_products + 6 * 24 * 1024 * 8192


def test_padding_rows_are_there() -> None:
    state: dict[str, Tensor] = tiny_decoder().state_dict()
    assert state["model.embed_tokens.weight"].shape == state["lm_head.weight"].shape == (128, 48)
