"""Generation: with and without a cache, padded, sampled, and beside Llama's."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.decoder.facts_placements_periln import CHOICES
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .test_parity import llama_like
from .tiny_decoder import VOCAB_SIZE, tiny_decoder, tiny_tokens

NEW_TOKENS = 12
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 5.0, "top_k": 0}
MODELS: list[dict[str, Any]] = [
    *({"norm_placement": name} for name in CHOICES),
    {"norm_placement": ("post", "pre", "peri", "hybrid")},
    {"norm_placement": "keel", "gpas": True, "attention_gate": "head", "qk_norm": "projection"},
    {"norm_placement": "hybrid", "gpas": True, "attention_gate": "element", "residual_factor": 0.5},
]
# Its random biases drown the tokens: greedy, it writes one token over and over.
DYT: dict[str, Any] = {"norm_placement": "sub", "norm_kind": "dyt", "norm_eps": 1e-6, "gpas": True}


def tiny(**overrides: Any) -> PeriLNForCausalLM:
    """A decoder of four layers, which mix needs."""
    return tiny_decoder(**({"num_hidden_layers": 4} | overrides))


def generate(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    whole = torch.ones_like(tokens)  # without a mask, transformers takes each token 0 for padding
    options = {"attention_mask": whole, "max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0} | options
    return model.generate(tokens, **options)


@pytest.mark.parametrize("overrides", [*MODELS, DYT], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cached_logits_equal_those_of_the_whole_text(overrides: dict[str, Any], attention: str) -> None:
    model, tokens = tiny(**overrides), tiny_tokens()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        whole = model(tokens).logits
        cache, parts = None, []
        for piece in tokens.split((5, 1, 4, 1, 1, 5), dim=1):
            output = model(piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)  # measured: 3.4e-6


@pytest.mark.parametrize("overrides", MODELS, ids=str)
def test_cached_generation_equals_uncached(overrides: dict[str, Any]) -> None:
    model = tiny(**overrides)
    cached = generate(model, tiny_tokens())
    assert cached.shape == (2, 17 + NEW_TOKENS)
    assert len(cached[:, 17:].unique()) > 3  # not one token over and over, which any cache would get right
    assert (cached == generate(model, tiny_tokens(), use_cache=False)).all()


def test_generation_equals_llamas() -> None:
    ours = tiny_decoder(norm_placement="pre")
    assert (generate(ours, tiny_tokens()) == generate(llama_like(ours), tiny_tokens())).all()


def test_a_padded_prompt_generates_as_alone() -> None:
    model, tokens = tiny_decoder(), tiny_tokens()
    mask = torch.ones_like(tokens)
    mask[0, :6] = 0
    together = generate(model, tokens.where(mask == 1, 0), attention_mask=mask)
    assert (together[0, 6:] == generate(model, tokens[:1, 6:])[0]).all()
    assert (together[1] == generate(model, tokens[1:])[0]).all()


def with_tempting_padding() -> PeriLNForCausalLM:
    """A decoder whose padding rows would win every time if they took part."""
    model = tiny_decoder()
    with torch.no_grad():
        model.lm_head.weight[VOCAB_SIZE:] = 100 * model.lm_head.weight[:38]
    return model


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 5.0, "top_k": 0}], ids=["greedy", "sampled"]
)
def test_padding_rows_are_never_generated(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    generated = generate(with_tempting_padding(), tiny_tokens(16, 4), max_new_tokens=24, **options)
    assert generated.max() < VOCAB_SIZE


def test_logits_have_the_columns_of_the_vocabulary() -> None:
    assert with_tempting_padding()(tiny_tokens()).logits.shape == (2, 17, VOCAB_SIZE)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 7])], ids=str)
def test_logits_to_keep_are_those_of_all(keep: int | Tensor) -> None:
    model = tiny_decoder()
    wanted = model(tiny_tokens()).logits[:, slice(-keep, None) if isinstance(keep, int) else keep]
    torch.testing.assert_close(model(tiny_tokens(), logits_to_keep=keep).logits, wanted, atol=1e-5, rtol=0)


def test_positions_that_start_anew_part_documents() -> None:
    model, tokens = tiny_decoder(), tiny_tokens(1, 17)
    positions = torch.cat((torch.arange(7), torch.arange(10)))[None]
    packed = model(tokens, position_ids=positions).logits
    apart = torch.cat([model(part).logits for part in tokens.split((7, 10), dim=1)], dim=1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=0)  # measured: 1.6e-6; unparted: 3.5


# ------------------------------------------------------------------------------------------------- ways of generating


def drafts() -> Any:
    """A smaller decoder that guesses what a larger one will write."""
    return tiny_decoder(num_hidden_layers=1)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
        {"prefill_chunk_size": 4, "cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": drafts},
    ],
    ids=["static cache", "prefill in chunks", "both", "prompt lookup", "assistant"],
)
@pytest.mark.parametrize("overrides", [{}, {"norm_placement": ("post", "pre", "peri", "hybrid")}], ids=str)
def test_every_way_writes_what_greedy_search_writes(overrides: dict[str, Any], options: dict[str, Any]) -> None:
    model, tokens = tiny(**overrides), tiny_tokens(1)
    options = {name: option() if callable(option) else option for name, option in options.items()}
    assert (generate(model, tokens, **options) == generate(model, tokens)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"num_beams": 3, "cache_implementation": "static"},
    ],
    ids=str,
)
def test_searches_find_what_llama_finds(options: dict[str, Any]) -> None:
    """With a padded prompt, and a vocabulary whose padding rows no beam may take."""
    ours = tiny_decoder(norm_placement="pre")
    theirs, tokens = llama_like(ours), tiny_tokens()
    mask = torch.ones_like(tokens)
    mask[0, :6] = 0
    tokens = tokens.where(mask == 1, 0)
    found, expected = (generate(model, tokens, attention_mask=mask, **options) for model in (ours, theirs))
    assert (found == expected).all()
    assert found.max() < VOCAB_SIZE


def test_sampling_draws_what_llama_draws() -> None:
    ours, written = tiny_decoder(norm_placement="pre"), []
    for model in (ours, llama_like(ours)):
        torch.manual_seed(0)
        written.append(generate(model, tiny_tokens(4), do_sample=True, temperature=2.0, top_p=0.9))
    assert (written[0] == written[1]).all()


def test_a_batch_equals_its_prompts_alone() -> None:
    model, tokens = tiny_decoder(), tiny_tokens(5)
    together = generate(model, tokens)
    for row, prompt in zip(together, tokens.split(1), strict=True):
        assert (row == generate(model, prompt)[0]).all()


# -------------------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize(
    ("training", "configured", "requested", "expected"),
    [
        (False, True, None, True),  # as transformers' models, for loops that generate by themselves
        (False, False, None, False),
        (False, True, False, False),
        (False, False, True, True),
        (True, True, None, False),  # unlike them: it would only take memory
        (True, True, True, True),
    ],
)
def test_a_cache_is_kept_where_it_helps(
    training: bool, configured: bool, requested: bool | None, expected: bool
) -> None:
    model = tiny_decoder(use_cache=configured).train(training)
    output = model(tiny_tokens(), labels=tiny_tokens(), use_cache=requested)
    assert (output.past_key_values is not None) == expected


def test_generation_keeps_a_cache_by_default() -> None:
    model = tiny_decoder()
    lengths: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    generate(model, tiny_tokens(), max_new_tokens=3)
    assert lengths == [17, 1, 1]


@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_are_parted_with_and_without_a_cache(use_cache: bool | None, attention: str) -> None:
    """In transformers' models only without: beside a new cache, the documents attend to each other."""
    model, tokens = tiny_decoder(), tiny_tokens(2, 17)
    model.set_attn_implementation(attention)
    positions = torch.cat((torch.arange(7), torch.arange(10)))[None].expand(2, -1)
    packed = model(tokens, position_ids=positions, use_cache=use_cache).logits
    apart = torch.cat([model(part).logits for part in tokens.split((7, 10), dim=1)], dim=1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=0)  # measured: 1.9e-6
