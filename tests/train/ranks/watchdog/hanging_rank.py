"""`python -m tests.train.ranks.watchdog.hanging_rank FAULT CONFIG [key=value ...]`: rank 1 goes wrong in step 5."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from train import __main__ as entry
from train import loop
from train.ranks.watchdog import watchdog
from train.tasks.language_model import LanguageModel

FAULTY_STEP = 5
IS_FAULTY = os.environ["RANK"] == "1"


class Place:
    """Where this rank is, as it tells the watchdog."""

    name, step = "", 0

    @classmethod
    def follow(cls) -> None:
        original = watchdog.Watchdog.enter

        def enter(self: watchdog.Watchdog, name: str, step: int = 0) -> None:
            cls.name, cls.step = name, step
            original(self, name, step)

        watchdog.Watchdog.enter = enter  # type: ignore[method-assign]

    @classmethod
    def is_faulty(cls) -> bool:
        return IS_FAULTY and (cls.name, cls.step) == ("step", FAULTY_STEP)


def in_step(fault: Callable[[], Any]) -> None:
    """Go wrong in the first forward pass of the step."""
    original = LanguageModel.step

    def step(self: LanguageModel, model: Any, batch: Any) -> Any:
        if Place.is_faulty():
            fault()
        return original(self, model, batch)

    LanguageModel.step = step  # type: ignore[method-assign]


def leave_out_a_collective() -> None:
    """Do not sum the weight of the step over the ranks."""
    original = loop.global_weight

    def global_weight(micro_batches: Any, world: Any) -> Any:
        return torch.tensor(64.0) if Place.is_faulty() else original(micro_batches, world)

    loop.global_weight = global_weight


def leave_out_one_of_another_size() -> None:
    """Do not average the figures of the step: the next collective of the same group is smaller."""
    original = loop.Accumulator.means

    def means(self: Any) -> dict[str, float]:
        return dict.fromkeys(self.totals, 0.0) if Place.is_faulty() else original(self)

    loop.Accumulator.means = means  # type: ignore[method-assign]


def read_a_fifo() -> None:
    """Wait for a writer that never comes."""
    path = Path(sys.argv[2]).parent / "fifo"
    os.mkfifo(path)
    path.read_text()


def hold_the_lock() -> None:
    """Sleep without letting go of Python's lock, as a full launch queue of a GPU does."""
    ctypes.PyDLL(None).sleep(600)


def fail() -> None:
    raise MemoryError("no memory left on this device")


def save_slowly() -> None:
    """Let rank 0 alone write for longer than a step may take."""
    original = loop.write_model_folder

    def write(*given: Any, **named: Any) -> Any:
        time.sleep(14)
        return original(*given, **named)

    loop.write_model_folder = write


FAULTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "skip": leave_out_a_collective,
    "skip_size": leave_out_one_of_another_size,
    "fifo": lambda: in_step(read_a_fifo),
    "stop": lambda: in_step(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "kill": lambda: in_step(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "lock": lambda: in_step(hold_the_lock),
    "fail": lambda: in_step(fail),
    "slow_step": lambda: in_step(lambda: time.sleep(14)),
    "slow_save": save_slowly,
}

if __name__ == "__main__":
    if sys.argv[1] == "lock" and IS_FAULTY:  # faulthandler is to end this rank; the other may judge as long as it takes
        watchdog._STUCK_SECONDS = 6.0
    Place.follow()
    FAULTS[sys.argv[1]]()
    sys.exit(entry.main(sys.argv[2:]))
