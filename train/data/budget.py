"""The budget of a run: its samples, tokens and epochs, and its tokens per parameter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

# Up to four epochs, repeated text is worth nearly as much as new text (Muennighoff et al. 2023, arXiv:2305.16264).
MANY_EPOCHS = 4


class Budget(NamedTuple):
    """What a run will have seen at its end.

    Args:
        steps: Optimizer steps.
        samples_per_step: The global batch.
        training_samples: Samples in the training data.
        parameters: Of the model, embeddings included.
        tokens_per_sample: Predicted tokens; None if the task has none.
    """

    steps: int
    samples_per_step: int
    training_samples: int
    parameters: int
    tokens_per_sample: int | None = None

    @property
    def samples(self) -> int:
        """Samples of the run, repetitions counted."""
        return self.steps * self.samples_per_step

    @property
    def epochs(self) -> float:
        """Passes over the training data."""
        return self.samples / self.training_samples

    @property
    def tokens_per_step(self) -> int | None:
        """Predicted tokens of a step."""
        return None if self.tokens_per_sample is None else self.samples_per_step * self.tokens_per_sample

    @property
    def tokens(self) -> int | None:
        """Predicted tokens of the run, repetitions counted."""
        return None if self.tokens_per_step is None else self.steps * self.tokens_per_step

    @property
    def tokens_per_parameter(self) -> float | None:
        """Predicted tokens of the run per parameter; about 20 is optimal for compute (Hoffmann et al. 2022)."""
        return None if self.tokens is None else self.tokens / self.parameters

    @property
    def unit(self) -> str:
        """What a sample is called."""
        return "samples" if self.tokens_per_sample is None else "windows"

    def facts(self) -> dict[str, Any]:
        """Return the budget for environment.json."""
        amounts = {
            "steps": self.steps,
            "samples_per_step": self.samples_per_step,
            "samples": self.samples,
            "epochs": self.epochs,
            "tokens_per_step": self.tokens_per_step,
            "tokens": self.tokens,
            "tokens_per_parameter": self.tokens_per_parameter,
        }
        return {name: amount for name, amount in amounts.items() if amount is not None}

    def lines(self, micro_batches: str) -> Iterator[str]:
        """Yield a line on a step and one on the whole run.

        Args:
            micro_batches: How a step is divided: "2 ranks x 1 micro-batch x 8 samples".
        """
        tokens = "" if self.tokens_per_step is None else f", {self.tokens_per_step:,} tokens"
        yield f"each step: {self.samples_per_step:,} {self.unit} ({micro_batches}){tokens}"
        amounts = f"{self.steps:,} steps, {self.samples:,} {self.unit}"
        if self.tokens is not None and self.tokens_per_parameter is not None:
            amounts += f", {self.tokens:,} tokens ({self.tokens_per_parameter:.3g} per parameter)"
        yield f"the whole run: {amounts}; {number_of_epochs(self.epochs)} over the training data"

    def warning(self) -> str | None:
        """Return a warning if text is repeated often; images are repeated, with other crops, as a matter of course."""
        if self.tokens_per_sample is None or self.epochs <= MANY_EPOCHS:
            return None
        return (
            f"{self.training_samples:,} windows, {self.steps:,} steps x {self.samples_per_step:,} samples: "
            f"{number_of_epochs(self.epochs)} over the training data, where more than {MANY_EPOCHS} teach little more "
            "and overfit; add text (task.data.sources), or lower steps"
        )


def number_of_epochs(epochs: float) -> str:
    """Return a number of epochs in words: "0.25 epochs", "13.9 epochs", "1,250 epochs"."""
    return f"{epochs:,.0f} epochs" if epochs >= 100 else f"{epochs:.3g} epoch{'s' * (epochs != 1)}"
