"""transformers' Trainer with the decoder and with a Llama of the same weights: they must measure and learn the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from modeling.decoder.facts_periln import LOSS_CHUNK_ELEMENTS
from modeling.decoder.head_periln import IGNORE_INDEX, LanguageModelHead

from .test_parity import llama_like
from .tiny_decoder import VOCAB_SIZE, tiny_decoder, tiny_tokens

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")


class Windows(Dataset[dict[str, Tensor]]):
    """Tokens as their own labels, some of which are ignored."""

    def __init__(self, samples: int) -> None:
        self.tokens = tiny_tokens(samples, 12)
        self.labels = self.tokens.clone()
        self.labels[::2, :5] = IGNORE_INDEX

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits, labels = prediction.predictions, prediction.label_ids
    guesses, wanted = np.asarray(logits)[:, :-1].argmax(-1), np.asarray(labels)[:, 1:]
    return {"accuracy": float((guesses == wanted)[wanted != IGNORE_INDEX].mean())}


def trainer(model: PreTrainedModel, folder: Path, **arguments: Any) -> Trainer:
    plain: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "per_device_eval_batch_size": 4}
    return Trainer(
        model=model,
        args=TrainingArguments(str(folder), **(plain | arguments)),
        train_dataset=Windows(16),
        eval_dataset=Windows(8),
        compute_metrics=accuracy,
    )


def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Our decoder, whose vocabulary is padded, and a Llama that computes the same."""
    ours = tiny_decoder(norm_placement="pre")
    theirs = llama_like(ours)
    theirs.model.embed_tokens.padding_idx = None  # whose embedding would get no gradient
    return ours, theirs


def test_evaluation_and_prediction_equal_llamas(tmp_path: Path) -> None:
    ours, theirs = (trainer(model, tmp_path) for model in models())
    assert ours.label_names == theirs.label_names == ["labels"]
    measured, expected = ours.evaluate(), theirs.evaluate()
    assert measured["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)  # measured: 0
    assert measured["eval_accuracy"] == expected["eval_accuracy"]
    predicted, wanted = ours.predict(Windows(4)), theirs.predict(Windows(4))
    assert np.shape(predicted.predictions) == (4, 12, VOCAB_SIZE)
    np.testing.assert_allclose(predicted.predictions, wanted.predictions, atol=1e-5, rtol=0)  # measured: 0
    np.testing.assert_array_equal(predicted.label_ids, wanted.label_ids)


def test_evaluation_without_metrics_equals_llamas(tmp_path: Path) -> None:
    ours, theirs = (trainer(model, tmp_path, prediction_loss_only=True) for model in models())
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-6)


def losses(model: PreTrainedModel, folder: Path, **arguments: Any) -> list[float]:
    """Train and return the loss of each step."""
    steps: dict[str, Any] = {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 4}
    steps |= {"save_strategy": "no", "optim": "sgd", "learning_rate": 0.03}  # Adam divides rounding by rounding
    trained = trainer(model, folder, **(steps | arguments))
    trained.train()
    return [row["loss"] for row in trained.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"gradient_accumulation_steps": 2}, {"activation_checkpointing": True}],
    ids=str,
)
def test_training_equals_llamas(tmp_path: Path, arguments: dict[str, Any]) -> None:
    ours, theirs = (losses(model, tmp_path, **arguments) for model in models())
    assert ours == pytest.approx(theirs, rel=1e-6)  # measured: 1e-7; a gradient without one row: 2e-4 at the end
    assert len(ours) == 4


def test_training_never_holds_all_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_CHUNK_ELEMENTS, "cpu", 8 * VOCAB_SIZE)
    model = tiny_decoder()
    returned: list[Any] = []
    model.lm_head.register_forward_hook(lambda head, args, output: returned.append((len(args), type(output))))
    losses(model, tmp_path, max_steps=1)
    assert [count for count, _ in returned] == [2]  # with labels: the loss, not logits
    assert isinstance(model.lm_head, LanguageModelHead)
    assert not any(issubclass(kind, Tensor) for _, kind in returned)


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    trained = trainer(
        tiny_decoder(tie_word_embeddings=True),
        tmp_path,
        max_steps=2,
        learning_rate=1.0,  # so high that the first evaluation remains the best
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trained.train()
    evaluated = [row["eval_loss"] for row in trained.state.log_history if "eval_loss" in row]
    assert min(evaluated) < evaluated[-1]
    assert trained.evaluate()["eval_loss"] == pytest.approx(min(evaluated), rel=1e-6)


def test_labels_that_are_already_shifted_are_used_as_they_are(tmp_path: Path) -> None:
    """As collators without padding give them, and Trainer under sequence parallelism."""
    model, tokens = tiny_decoder(), tiny_tokens()
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=IGNORE_INDEX)
    wanted = model(tokens, labels=tokens)
    found = trainer(model, tmp_path).compute_loss(model, {"input_ids": tokens, "shift_labels": shifted})
    torch.testing.assert_close(found, wanted.loss, atol=0, rtol=0)
