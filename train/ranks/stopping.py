"""Early stopping without loss: after a signal to any rank, all ranks save a checkpoint at the next step boundary."""

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
from train.ranks.launcher_env import report_to_torchrun

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# SLURM may signal every process of a job, and torchrun and our launcher forward theirs: one request may arrive several
# times.
_REPEAT_SECONDS = 2.0
_ORPHAN_SECONDS = 30.0  # for a rank to save and exit once its launcher is dead
_REPARENTED_SECONDS = 1.0  # the signal comes when one thread of the launcher dies, the other threads follow
_EXIT_SECONDS = 5.0  # for the main thread to leave preparation; it cannot react inside a collective
NOTHING_LOST = "stopped before the first step: nothing is lost; run the same command again to start"


class StoppedInPreparationError(Exception):
    """A signal arrived before the first step: there is nothing to save, and nothing is lost."""


class StopSignal:
    """The stop signal that this process has received, if any.

    A Python signal handler runs only once the main thread returns from a collective or a backward pass, seconds late.
    Therefore a thread reads the signals from a pipe and reacts immediately: it logs what happens next, and forces the
    exit at a second signal or when the deadline has passed.

    Args:
        deadline: Seconds from a signal to the forced exit; None for no limit.
        launcher: Process id of the launcher with which this rank ends; None if it may outlive it.
    """

    def __init__(self, *, deadline: float | None = None, launcher: int | None = None) -> None:
        self.name: str | None = None  # of the received signal
        self._received_at = 0.0  # on the monotonic clock
        self._deadline = deadline
        self._launcher = launcher
        self._folder: Path | None = None
        self._preparing = False
        self._saved = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals inside the context; main thread only."""
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        owner = os.getpid()
        os.register_at_fork(after_in_child=lambda: _reset_signals() if os.getppid() == owner else None)
        thread = threading.Thread(target=self._read_signals, args=(receiver,), name="signals", daemon=True)
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
        """Abort the enclosed work on a signal.

        Raises:
            StoppedInPreparationError: A signal arrived.
        """
        self._preparing = True
        try:
            if self.name is not None:
                raise StoppedInPreparationError
            yield
        except StoppedInPreparationError:
            self._report_nothing_lost()
            raise
        finally:
            self._preparing = False

    def record_in(self, folder: Path) -> None:
        """Record a stop before the first step in this run folder, which this process has locked."""
        self._folder = folder

    def mark_saved(self) -> None:
        """Record that the final checkpoint is on disk; later signals have no effect."""
        self._saved = True

    def _handle(self, number: int, _: object) -> None:
        if self._preparing:
            raise StoppedInPreparationError

    def _read_signals(self, receiver: socket.socket) -> None:
        while numbers := receiver.recv(16):
            for number in numbers:
                if number in SIGNALS:
                    self._receive(signal.Signals(number).name)

    def _receive(self, name: str) -> None:
        if self._saved:
            return
        if self.name == name and time.monotonic() - self._received_at < _REPEAT_SECONDS:
            return
        if self.name is not None:
            self._force(f"{name} after {self.name}")
        self.name, self._received_at = name, time.monotonic()
        plan = "" if self._preparing else ": saving a checkpoint at the end of this step; a second signal exits at once"
        logger.warning("received %s%s", name, plan)
        if self._preparing:
            _run_after(_EXIT_SECONDS, self._leave_preparation)
        self._exit_after(self._deadline, f"of {name}")
        _run_after(_REPARENTED_SECONDS, self._end_with_launcher)

    def _end_with_launcher(self) -> None:
        """Limit the time to save if the signal was the kernel's, because the launcher has died."""
        if self._launcher is not None and os.getppid() != self._launcher:
            logger.warning("the launcher (process %d) has died: this rank ends too", self._launcher)
            self._exit_after(_ORPHAN_SECONDS, "of the launcher's death")

    def _exit_after(self, seconds: float | None, since: str) -> None:
        if seconds is not None:
            _run_after(seconds, lambda: self._force(f"no checkpoint within {seconds:g} s {since}"))

    def _leave_preparation(self) -> None:
        """Exit from this thread if the main thread is stuck, e.g. waiting for a rank that has already left."""
        if self._preparing:
            self._report_nothing_lost()
            logger.warning("%s", NOTHING_LOST)
            os._exit(STOPPED_EARLY)

    def _report_nothing_lost(self) -> None:
        report_to_torchrun(NOTHING_LOST)
        if self._folder is not None:
            note_stopped(self._folder, step=0, name=self.name or "signal")

    def _force(self, reason: str) -> None:
        if self._saved:
            return
        self._leave_preparation()
        logger.error("%s: exiting without a new checkpoint; the last complete one is intact", reason)
        os._exit(1)


def _run_after(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def _reset_signals() -> None:
    """Undo the inherited signal handling in a forked worker, so that ending it does not stop the run."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def note_stopped(folder: Path, *, step: int, name: str) -> None:
    """Record an early stop in the run folder, as a torchrun that is itself terminated cannot report it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"exit_code": STOPPED_EARLY, "step": step, "signal": name, "time": now}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOPPED).write_text(json.dumps(record) + "\n")


def forget_stopped(folder: Path) -> None:
    """Delete the record of an earlier stop."""
    (folder / STOPPED).unlink(missing_ok=True)
