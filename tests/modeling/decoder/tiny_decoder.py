"""Tiny decoders for tests, with weights drawn so that every one of them matters."""

from typing import Any

import torch
from torch import Tensor

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.modeling_periln import PeriLNForCausalLM

VOCAB_SIZE = 90  # no multiple of 64: 38 rows are padding


def tiny_config(**overrides: Any) -> PeriLNConfig:
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "norm_eps": 1e-5,
    }
    return PeriLNConfig(**(shape | overrides))


def tiny_decoder(**overrides: Any) -> PeriLNForCausalLM:
    """A decoder in evaluation mode whose norm scales differ from one and whose activations are of order one."""
    torch.manual_seed(0)
    model = PeriLNForCausalLM(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(std=tensor.shape[1] ** -0.5)
    return model


def tiny_tokens(batch_size: int = 2, length: int = 17) -> Tensor:
    return torch.randint(VOCAB_SIZE, (batch_size, length), generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model: PeriLNForCausalLM) -> tuple[Tensor, dict[str, Tensor]]:
    tokens = tiny_tokens()
    loss = model(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], num_items_in_batch=1).loss
    names, parameters = zip(*model.named_parameters(), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
