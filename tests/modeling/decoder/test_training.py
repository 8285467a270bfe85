"""The decoder in training: attention's fast path, activation checkpointing, and outputs on request."""

from typing import Any

import pytest
import torch
from torch import nn

from modeling.decoder.attention_periln import SelfAttention
from modeling.decoder.modeling_periln import DecoderLayer, PeriLNForCausalLM

from .tiny_decoder import loss_and_gradients, tiny_decoder, tiny_tokens


def attention_masks(model: PeriLNForCausalLM, **inputs: Any) -> list[Any]:
    """The mask that each layer's attention gets."""
    masks = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        masks.append(kwargs["attention_mask"])

    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_pre_hook(note, with_kwargs=True)
    model(input_ids=tiny_tokens(), **inputs)
    return masks


def test_plain_training_builds_no_mask() -> None:
    model = tiny_decoder().train()
    assert model.config._attn_implementation == "sdpa"
    assert attention_masks(model, shift_labels=tiny_tokens()) == [None] * 3


def test_padding_builds_one_mask_for_all_layers() -> None:
    padding = torch.ones(2, 17, dtype=torch.long)
    padding[0, :3] = 0
    masks = attention_masks(tiny_decoder().train(), attention_mask=padding)
    assert masks[0].shape == (2, 1, 17, 17)
    assert all(mask is masks[0] for mask in masks)


def test_plain_training_keeps_no_cache() -> None:
    assert tiny_decoder().train()(tiny_tokens(), labels=tiny_tokens()).past_key_values is None


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("placement", ["peri", ("post", "pre", "output")], ids=str)
def test_checkpointed_gradients_are_equal(use_reentrant: bool, placement: Any) -> None:
    loss, gradients = loss_and_gradients(tiny_decoder(norm_placement=placement).train())
    model = tiny_decoder(norm_placement=placement).train()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    runs = []
    for layer in model.modules():
        if isinstance(layer, DecoderLayer):
            layer.attention.branch.register_forward_hook(lambda *_: runs.append(None))
    if use_reentrant:  # which autograd.grad cannot drive
        tokens = tiny_tokens()
        checkpointed = model(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], num_items_in_batch=1).loss
        checkpointed.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
    else:
        checkpointed, found = loss_and_gradients(model)
    assert len(runs) == 6  # three layers, forward and again
    torch.testing.assert_close(checkpointed, loss, atol=0, rtol=0)
    torch.testing.assert_close(found, gradients, atol=0, rtol=0)


def test_hidden_states_and_attentions_are_returned_when_asked_for() -> None:
    model = tiny_decoder()
    model.set_attn_implementation("eager")
    output = model(tiny_tokens(), output_hidden_states=True, output_attentions=True)
    assert [states.shape for states in output.hidden_states] == [(2, 17, 48)] * 4
    assert [weights.shape for weights in output.attentions] == [(2, 4, 17, 17)] * 3
    torch.testing.assert_close(output.hidden_states[0], model.model.embed_tokens(tiny_tokens()), atol=0, rtol=0)
    torch.testing.assert_close(output.attentions[2].sum(-1), torch.ones(2, 4, 17))


def test_either_tokens_or_embeddings() -> None:
    model = tiny_decoder()
    embeddings = model.model.embed_tokens(tiny_tokens())
    same = model(inputs_embeds=embeddings).logits
    torch.testing.assert_close(same, model(tiny_tokens()).logits, atol=0, rtol=0)
    with pytest.raises(ValueError, match="give exactly one of them"):
        model(tiny_tokens(), inputs_embeds=embeddings)
    with pytest.raises(ValueError, match="give exactly one of them"):
        model()


@pytest.mark.parametrize("length", [17, 33])
def test_one_step_overfits_towards_its_batch(length: int) -> None:
    model = tiny_decoder().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    tokens = tiny_tokens(2, length)
    losses = []
    for _ in range(2):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
