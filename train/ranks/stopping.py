"""Stopping early and losing nothing: a signal to any rank leads all to a checkpoint at the next step boundary."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from train.config.facts.exit_codes import STOPPED_EARLY
from train.config.facts.run_layout import STOPPED
from train.ranks.launcher_env import tell_torchrun

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# SLURM may signal every process of a job, and torchrun and our launcher pass theirs on: one wish comes several times.
_ONE_WISH_SECONDS = 2.0
_WAY_OUT_SECONDS = 5.0  # for the main thread to leave preparation; in a collective it hears nothing
NOTHING_LOST = "stopped before the first step: nothing is lost; start the same command again"


class StoppedInPreparationError(Exception):
    """A signal came before the first step: there is nothing to save yet, and nothing is lost."""


class StopSignal:
    """Whether this process was asked to stop, and by which signal.

    A Python handler runs only when the main thread comes back from a collective or a backward pass, seconds late. So
    a thread reads the signals from a pipe and hears them at once: it says what is going to happen, and forces the exit
    at a second signal or when the deadline has passed.

    Args:
        deadline: Seconds from a signal to the forced exit; None: no limit.
        folder: Where a stop before the first step is noted; None: another rank does it.
    """

    def __init__(self, *, deadline: float | None = None, folder: Path | None = None) -> None:
        self.name: str | None = None  # of the signal that was heard
        self._heard_at = 0.0  # on the monotonic clock
        self._deadline = deadline
        self._folder = folder
        self._preparing = False
        self._saved = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the signals inside; the main thread only."""
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        owner = os.getpid()
        os.register_at_fork(after_in_child=lambda: _be_an_ordinary_process() if os.getppid() == owner else None)
        thread = threading.Thread(target=self._hear, args=(receiver,), name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            sender.close()  # ends the thread
            thread.join()
            receiver.close()

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Break off what happens inside at a signal.

        Raises:
            StoppedInPreparationError: There was one.
        """
        self._preparing = True
        try:
            if self.name is not None:
                raise StoppedInPreparationError
            yield
        except StoppedInPreparationError:
            self._tell_nothing_is_lost()
            raise
        finally:
            self._preparing = False

    def is_saved(self) -> None:
        """Say that the checkpoint lies on the disk: from here on signals change nothing."""
        self._saved = True

    def _handle(self, number: int, _: object) -> None:
        if self._preparing:
            raise StoppedInPreparationError

    def _hear(self, receiver: socket.socket) -> None:
        while numbers := receiver.recv(16):
            for number in numbers:
                if number in SIGNALS:
                    self._heard(signal.Signals(number).name)

    def _heard(self, name: str) -> None:
        if self._saved:
            return
        if self.name == name and time.monotonic() - self._heard_at < _ONE_WISH_SECONDS:
            return
        if self.name is not None:
            self._force(f"{name} after {self.name}")
        self.name, self._heard_at = name, time.monotonic()
        then = "" if self._preparing else ": saving a checkpoint at the end of this step; a second signal exits at once"
        logger.warning("%s%s", name, then)
        if self._preparing:
            _after(_WAY_OUT_SECONDS, self._leave_preparation)
        if self._deadline is not None:
            _after(self._deadline, lambda: self._force(f"{name} was {self._deadline:g} s ago"))

    def _leave_preparation(self) -> None:
        """Leave from this thread, if the main one has not: it may wait for a rank that has left already."""
        if self._preparing:
            self._tell_nothing_is_lost()
            logger.warning("%s", NOTHING_LOST)
            os._exit(STOPPED_EARLY)

    def _tell_nothing_is_lost(self) -> None:
        tell_torchrun(NOTHING_LOST)
        if self._folder is not None:
            note_stopped(self._folder, step=0, name=self.name or "signal")

    def _force(self, reason: str) -> None:
        if self._saved:
            return
        self._leave_preparation()
        logger.error("%s: leaving without a new checkpoint; the last complete one is untouched", reason)
        os._exit(1)


def _after(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def _be_an_ordinary_process() -> None:
    """Undo in a forked worker what it inherited: its own end is not a signal to this run."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def note_stopped(folder: Path, *, step: int, name: str) -> None:
    """Write into the run folder that the run stopped early: a torchrun that is ended from outside can not tell."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    noted = {"exit_code": STOPPED_EARLY, "step": step, "signal": name, "time": now}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOPPED).write_text(json.dumps(noted) + "\n")


def forget_stopped(folder: Path) -> None:
    """Take the note of an earlier stop away."""
    (folder / STOPPED).unlink(missing_ok=True)
