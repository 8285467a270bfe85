"""PEFT's adapters on the decoder beside those on a Llama of the same weights; skipped without PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.decoder.head_periln import LanguageModelHead
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .test_trainer import models
from .tiny_decoder import tiny_decoder, tiny_tokens

peft: Any = pytest.importorskip("peft", reason="needs the extra `clients`")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]

TARGETS: list[Any] = [["q_proj", "v_proj"], ["lm_head"], ["lm_head", "down_proj"], "all-linear"]


def adapted(model: Any, targets: Any, **options: Any) -> Any:
    """The model with adapters whose first matrices do not depend on how wide the others are."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, **options)
    model = peft.get_peft_model(model, config).train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
    return model


def train(model: Any, steps: int = 3) -> list[float]:
    """Train the adapters and return the losses."""
    tokens, losses = tiny_tokens(), []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(tiny_tokens()).logits


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["lm_head", "down_proj"]], ids=str)
def test_adapters_learn_as_llamas(targets: Any) -> None:
    """The vocabulary is padded: an adapter of the head has a row for each row of its matrix."""
    ours, theirs = (train(adapted(model, targets)) for model in models())
    assert ours == pytest.approx(theirs, rel=1e-6)  # measured: 1e-7
    assert ours[-1] < ours[0] - 0.05


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_adapters_are_read_back_and_merged(tmp_path: Path, targets: Any) -> None:
    base = tiny_decoder(z_loss_coefficient=0.01)
    base.save_pretrained(tmp_path / "base")
    before = logits(base)
    model = adapted(base, targets)
    train(model)
    learned = logits(model)
    assert (learned - before).abs().max() > 0.01
    model.save_pretrained(tmp_path / "adapter")
    again = PeriLNForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again), learned, atol=0, rtol=0)
    merged = again.merge_and_unload()
    assert isinstance(merged.lm_head, LanguageModelHead)
    merged.save_pretrained(tmp_path / "merged")
    loaded = PeriLNForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(loaded), learned, atol=2e-5, rtol=0)  # measured: 5.4e-6
    torch.testing.assert_close(logits(loaded), logits(merged), atol=0, rtol=0)


def test_added_tokens_are_trained_beside_an_adapter(tmp_path: Path) -> None:
    """The usual way to add tokens: resize, and train embedding and head as a whole."""
    base = tiny_decoder()
    base.resize_token_embeddings(93)
    model = adapted(base, ["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    train(model)
    learned = logits(model)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = PeriLNForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == 93
    torch.testing.assert_close(logits(loaded), learned, atol=2e-5, rtol=0)


def test_an_adapted_head_gives_the_loss_of_its_logits() -> None:
    model, tokens = adapted(tiny_decoder(z_loss_coefficient=0.1), ["lm_head"]), tiny_tokens()
    train(model)
    merged = model.merge_adapter() or model
    chunked = tiny_decoder(z_loss_coefficient=0.1)
    chunked.lm_head.weight.data.copy_(merged.base_model.model.lm_head.weight)
    chunked.model.load_state_dict(tiny_decoder().model.state_dict())
    ours, wanted = (each(tokens, labels=tokens, return_logits=False) for each in (merged, chunked))
    assert ours.logits is None
    torch.testing.assert_close(ours.loss, wanted.loss, atol=0, rtol=1e-6)
    torch.testing.assert_close(ours.z_loss, wanted.z_loss, atol=0, rtol=1e-6)
