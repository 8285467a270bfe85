"""The budget of a run and the summary of its data, against numbers made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from train.data import summary
from train.data.budget import Budget, number_of_epochs

# 20 steps x 16 samples of 23 windows, as in marin#2351
SMALL = Budget(steps=20, samples_per_step=16, training_samples=23, parameters=1600, tokens_per_sample=100)
IMAGES = Budget(steps=1000, samples_per_step=8, training_samples=10, parameters=5)


def test_a_budget_follows_from_its_five_numbers() -> None:
    assert (SMALL.samples, SMALL.tokens_per_step, SMALL.tokens) == (320, 1600, 32_000)
    assert SMALL.epochs == pytest.approx(13.913, abs=1e-3)
    assert SMALL.tokens_per_parameter == 20
    assert SMALL.facts() == {
        "steps": 20,
        "samples_per_step": 16,
        "samples": 320,
        "epochs": 320 / 23,
        "tokens_per_step": 1600,
        "tokens": 32_000,
        "tokens_per_parameter": 20,
    }
    assert list(SMALL.lines("2 ranks x 1 micro-batch x 8 samples")) == [
        "each step: 16 windows (2 ranks x 1 micro-batch x 8 samples), 1,600 tokens",
        "the whole run: 20 steps, 320 windows, 32,000 tokens (20 per parameter); 13.9 epochs over the training data",
    ]


def test_a_budget_without_tokens_has_samples_alone() -> None:
    assert (IMAGES.tokens, IMAGES.tokens_per_parameter, IMAGES.epochs) == (None, None, 800)
    assert set(IMAGES.facts()) == {"steps", "samples_per_step", "samples", "epochs"}
    assert list(IMAGES.lines("1 rank x 1 micro-batch x 8 samples"))[1] == (
        "the whole run: 1,000 steps, 8,000 samples; 800 epochs over the training data"
    )


def test_many_epochs_of_text_are_warned_of() -> None:
    warning = SMALL.warning()
    assert warning is not None
    assert warning.startswith("23 windows, 20 steps x 16 samples: 13.9 epochs over the training data")
    assert SMALL._replace(training_samples=80).warning() is None  # 4 epochs
    assert SMALL._replace(training_samples=79).warning() is not None
    assert IMAGES.warning() is None


@pytest.mark.parametrize(
    ("epochs", "words"), [(0.01629, "0.0163 epochs"), (1, "1 epoch"), (13.913, "13.9 epochs"), (1250.4, "1,250 epochs")]
)
def test_epochs_in_words(epochs: float, words: str) -> None:
    assert number_of_epochs(epochs) == words


FACTS: dict[str, Any] = {
    "training_documents": 2,
    "validation_documents": 1,
    "training_tokens": 40,
    "validation_tokens": 12,
    "training_windows": 4,
    "validation_windows": 1,
    "training_documents_dropped_as_in_validation": 0,
    "sources": {
        "task.data.sources[0]": {"path": "a.txt", "files": 1, "documents": 2, "bytes": 2100, "blank_documents": 1},
        "task.data.validation_sources[0]": {"path": "b", "files": 3, "documents": 1, "bytes": 50, "skipped": 2},
    },
    "tokens_by_source": {"task.data.sources[0]": 40},
}


def test_data_are_summed_up_by_split_and_source() -> None:
    assert list(summary.lines(FACTS)) == [
        "training data: 2 documents, 2.1 kB, 40 tokens, 4 windows",
        "validation data: 1 document, 50 bytes, 12 tokens, 1 window",
        "  task.data.sources[0] a.txt: 1 file, 2 documents, 2.1 kB, 40 tokens (1 blank)",
        "  task.data.validation_sources[0] b: 3 files, 1 document, 50 bytes (2 bad and skipped)",
    ]


def test_bytes_of_a_split_are_stated_only_where_they_are_known() -> None:
    """Documents that validation sources contain too are dropped from training; a held-out fraction has no sources."""
    dropped = FACTS | {"training_documents_dropped_as_in_validation": 1}
    assert "bytes" not in summary.amounts(dropped, "training")
    assert summary.amounts(dropped, "validation")["bytes"] == 50
    assert "  not trained on, as the validation sources contain them too: 1 document" in list(summary.lines(dropped))
    held_out = FACTS | {"sources": {"task.data.sources[0]": FACTS["sources"]["task.data.sources[0]"]}}
    assert "bytes" not in summary.amounts(held_out, "validation")
    assert summary.amounts(held_out | {"validation_bytes": 7}, "validation")["bytes"] == 7


def test_other_tasks_are_summed_up_by_their_samples() -> None:
    assert list(summary.lines({"training_pairs": 1, "validation_pairs": 2})) == [
        "training data: 1 pair",
        "validation data: 2 pairs",
    ]
    assert next(iter(summary.lines({"training_samples": 8}))) == "training data: 8 samples"
