"""One rank of `python -m train`, changed for measuring.

    python -m tests.gpu.loops.rank CHANGES CONFIG [key=value ...] [--then CHANGES CONFIG [key=value ...]]

CHANGES, joined by commas:
    plain           none
    after=FILE      import, then wait for the file
    drawn_on_card   draw the initial weights there: on one core that takes a minute for 3.2 billion
    poisoned        make the loss of step POISONED NaN
    killed          SIGKILL before step KILLED
    profiled=FILE   write a profile of one step

Runs after `--then` share the process, so that it starts only once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

from train import __main__ as entry
from train.config.load import load

POISONED = 3
SAVED, KILLED = 6, 8  # the checkpoint of step 6 is complete before the kill, that of step 9 never begun
LARGE = 2**20  # elements: smaller tensors stay as they are


def main(arguments: list[str]) -> int:
    """Run them in order and return the first exit code that is not 0."""
    runs = [list(words) for is_break, words in groupby(arguments, lambda word: word == "--then") if not is_break]
    if len(runs) == 1:
        return _changed(runs[0], entry.main)
    return next((code for words in runs if (code := _changed(words, _train_and_stay))), 0)


def _changed(words: list[str], train: Callable[[list[str]], int]) -> int:
    with ExitStack() as changes:
        for change in words[0].split(","):
            name, _, value = change.partition("=")
            changes.enter_context(CHANGES[name](value))
        return train(words[1:])


def _train_and_stay(words: list[str]) -> int:
    """Train without leaving the process group, which DeepSpeed remembers for the next run."""
    from train.rank import train_rank
    from train.ranks.distributed import set_up_logging

    set_up_logging()
    return train_rank(load(words[0], words[1:]))


def _after(file: str) -> AbstractContextManager[None]:
    wait_for(Path(file))
    return nullcontext()


def wait_for(file: Path) -> None:
    """Import what a run needs, so that this overlaps with the run before, and wait for a file."""
    importlib.import_module("train.rank")
    while not file.exists():
        time.sleep(0.05)


@contextmanager
def _drawn_on_card(_: str) -> Iterator[None]:
    """Draw large weights on the card; which numbers they are does not matter to a speed."""
    import torch
    from torch import Tensor, nn

    normal = Tensor.normal_

    def drawn(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
        if self.numel() < LARGE or self.is_cuda or not torch.cuda.is_available():
            return normal(self, mean, std, generator=generator)
        return self.copy_(torch.randn(self.shape, device="cuda").mul_(std).add_(mean))

    overwritten_anyway = [(kind, "reset_parameters", lambda self: None) for kind in (nn.Linear, nn.Embedding)]
    with _attributes((Tensor, "normal_", drawn), *overwritten_anyway):
        yield


@contextmanager
def _poisoned(_: str) -> Iterator[None]:
    from train.tasks.language_model import LanguageModel

    original = LanguageModel.step
    now = {"step": 0}

    def step(self: LanguageModel, model: Any, batch: Any) -> Any:
        output = original(self, model, batch)
        is_poisoned = model.training and now["step"] == POISONED
        return output._replace(loss_sum=output.loss_sum * float("nan")) if is_poisoned else output

    def note(_: Any, step: int) -> None:
        now["step"] = step

    with _attributes((LanguageModel, "step", step)), before_each_step(note):
        yield


def _killed(_: str) -> AbstractContextManager[None]:
    def kill(run: Any, step: int) -> None:
        while step == KILLED and not (run.folder / f"checkpoints/step_{SAVED:06d}").exists():
            time.sleep(0.05)  # saved in the background
        if step == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    return before_each_step(kill)


def _profiled(file: str) -> AbstractContextManager[None]:
    from tests.gpu.loops.profile import Profile

    profile = Profile(Path(file))
    return before_each_step(lambda _, step: profile.before(step))


@contextmanager
def before_each_step(call: Callable[[Any, int], None]) -> Iterator[None]:
    """Call a function with the run and the number of each step before it."""
    from train import loop

    original = loop.feed

    def feed(run: Any) -> Iterator[Any]:
        for step, micro_batches in original(run):
            call(run, step)
            yield step, micro_batches

    with _attributes((loop, "feed", feed)):
        yield


@contextmanager
def _attributes(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Set attributes and put the former ones back."""
    former = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in former:
            setattr(owner, name, value)


CHANGES: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "plain": lambda _: nullcontext(),
    "after": _after,
    "drawn_on_card": _drawn_on_card,
    "poisoned": _poisoned,
    "killed": _killed,
    "profiled": _profiled,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
