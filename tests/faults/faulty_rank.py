"""`python -m tests.faults.faulty_rank FAULT CONFIG [key=value ...]`: train, with something wrong in it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train import __main__ as entry
from train import tasks
from train.data.order import content_hashes
from train.tasks.language_model import LanguageModel

ONE_IN = 40  # samples that are poison


def poison() -> None:
    """Make the loss of every batch with a certain kind of sample NaN, on whichever rank and whenever it comes."""
    original = LanguageModel.step

    def step(self: LanguageModel, model: Any, batch: Any) -> Any:
        output = original(self, model, batch)
        is_poison = bool((content_hashes({"tokens": batch["tokens"]}) % ONE_IN == 0).any())
        return output._replace(loss_sum=output.loss_sum * float("nan")) if model.training and is_poison else output

    LanguageModel.step = step  # type: ignore[method-assign]


def late_at_the_group() -> None:
    """Let rank 1 come late to the process group, for which rank 0 waits."""
    original = tasks.build_task

    def build_task(*given: Any) -> Any:
        task = original(*given)
        _be_late()
        return task

    tasks.build_task = build_task


def late_with_the_model() -> None:
    """Let rank 1 come late with its model: rank 0 waits for it in a collective."""
    original = LanguageModel.build_model

    def build_model(self: LanguageModel) -> Any:
        _be_late()
        return original(self)

    LanguageModel.build_model = build_model  # type: ignore[method-assign]


def _be_late() -> None:
    if os.environ["RANK"] == "1":
        time.sleep(2)  # rank 0 is waiting by then
        Path(sys.argv[2]).with_name("late").touch()
        time.sleep(600)


FAULTS: dict[str, Callable[[], None]] = {
    "poison": poison,
    "late_at_the_group": late_at_the_group,
    "late_with_the_model": late_with_the_model,
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    sys.exit(entry.main(sys.argv[2:]))
