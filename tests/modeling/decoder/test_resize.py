"""Resized vocabularies, beside a Llama of the same weights: rows, logits, loss, generation, and what is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling.decoder.head_periln import LanguageModelHead
from modeling.decoder.modeling_periln import PeriLNForCausalLM, PeriLNModel

from .test_parity import llama_like
from .tiny_decoder import VOCAB_SIZE, tiny_decoder, tiny_tokens

SIZES = [70, VOCAB_SIZE, 91, 100, 128, 131, 192]  # below, the same, above; 90 has 128 rows, of which 38 are padding


def resized(tokens: int, *, tied: bool = False, **arguments: Any) -> PeriLNForCausalLM:
    model = tiny_decoder(norm_placement="pre", tie_word_embeddings=tied)
    model.resize_token_embeddings(tokens, **arguments)
    return model


def weights(model: Any) -> tuple[Tensor, Tensor]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_rows_and_configuration_are_as_requested(size: int, tied: bool) -> None:
    model = resized(size, tied=tied)
    embedding, head = weights(model)
    assert embedding.shape == head.shape == (size, 48)
    assert model.config.vocab_size == model.config.padded_vocab_size == size
    assert model.lm_head.out_features == model.get_input_embeddings().num_embeddings == size
    assert (embedding is head) == tied
    assert model(tiny_tokens() % 70).logits.shape == (2, 17, size)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_old_tokens_keep_their_logits_and_loss(size: int, tied: bool) -> None:
    tokens, old = tiny_tokens() % 70, tiny_decoder(norm_placement="pre", tie_word_embeddings=tied)
    model, common = resized(size, tied=tied), min(size, VOCAB_SIZE)
    logits = model(tokens).logits
    torch.testing.assert_close(logits[..., :common], old(tokens).logits[..., :common], atol=1e-5, rtol=0)
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    for return_logits in (True, False):
        loss = model(tokens, labels=tokens, return_logits=return_logits).loss
        torch.testing.assert_close(loss, wanted, atol=0, rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [70, 100, 131])
def test_the_resized_decoder_is_the_resized_llama(size: int, tied: bool) -> None:
    """Added rows are drawn alike: around the mean of the tokens' rows, and not of those of the padding too.

    Draws have a standard deviation of 4.5e-6. The two means are 0.01 apart.
    """
    ours = tiny_decoder(norm_placement="pre", tie_word_embeddings=tied)
    theirs = llama_like(ours)
    for model in (ours, theirs):
        model.resize_token_embeddings(size)
    for mine, other in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(mine, other, atol=5e-5, rtol=0)  # measured: 2.6e-5, of 1,968 elements
        mine.data.copy_(other)
    tokens = torch.arange(0, size, 3)[None]  # among them new ones
    ours_output, their_output = (model(tokens, labels=tokens) for model in (ours, theirs))
    torch.testing.assert_close(ours_output.logits, their_output.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours_output.loss, their_output.loss, atol=0, rtol=1e-6)
    prompt: dict[str, Any] = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 8, "do_sample": False}
    generated = [model.generate(tokens, pad_token_id=0, **prompt) for model in (ours, theirs)]  # type: ignore[operator]
    assert (generated[0] == generated[1]).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_resized_decoder_reads_back_equal(tmp_path: Path, size: int, tied: bool) -> None:
    model = resized(size, tied=tied)
    model.save_pretrained(tmp_path)
    loaded = PeriLNForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    tokens = tiny_tokens() % 70
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, atol=0, rtol=0)
    torch.testing.assert_close(loaded(tokens, labels=tokens).loss, model(tokens, labels=tokens).loss, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("size", "multiple", "rows"), [(91, 8, 96), (70, 64, 128), (96, 32, 96), (None, 8, 96), (None, 100, 100)]
)
def test_rows_are_padded_to_a_multiple_as_llamas(size: int | None, multiple: int, rows: int) -> None:
    """The vocabulary then has that many tokens: transformers knows no padding rows."""
    ours = tiny_decoder(norm_placement="pre")
    theirs = llama_like(ours)
    for model in (ours, theirs):
        model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
        assert [len(weight) for weight in weights(model)] == [rows, rows]
        assert model.config.vocab_size == rows
        assert model(tiny_tokens() % 70).logits.shape[-1] == rows


def test_a_multiple_that_still_fits_is_kept() -> None:
    assert resized(192).config.vocab_size_multiple == 64
    assert resized(100).config.vocab_size_multiple == 1


def test_nothing_requested_changes_nothing() -> None:
    model = tiny_decoder()
    before = weights(model)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert all(new is old for new, old in zip(weights(model), before, strict=True))
    assert model.config.padded_vocab_size == 128


@pytest.mark.parametrize("tied", [False, True])
def test_the_chunked_loss_outlives_a_resize(tied: bool) -> None:
    model, tokens = resized(100, tied=tied), torch.arange(100)[None]
    head = model.get_output_embeddings()
    assert isinstance(head, LanguageModelHead)
    parameters = list(model.parameters())
    assert any(parameter is head.weight for parameter in parameters)
    gradients = [
        torch.autograd.grad(model(tokens, labels=tokens, return_logits=logits).loss, parameters)
        for logits in (True, False)
    ]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)  # measured: 1.2e-7


def test_frozen_matrices_stay_frozen() -> None:
    model = tiny_decoder()
    model.requires_grad_(False)
    model.resize_token_embeddings(100)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_decoder_without_head_is_resized_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PeriLNModel(tiny_decoder().config)
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path)
    loaded = PeriLNModel.from_pretrained(tmp_path)
    assert loaded.embed_tokens.weight.shape == (100, 48)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
