"""Heartbeat files (RUN/heartbeat/rank_00000.json): state of each rank, rewritten every two seconds."""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from train.config.facts.run_layout import HEARTBEATS

BEAT_SECONDS = 2.0
START_SECONDS = 300.0  # for all ranks to start: launchers start them together

State = Literal["running", "answering", "failed", "finished", "stopped"]  # stopped: by a signal, in preparation


@dataclass(frozen=True)
class Heartbeat:
    """The published state of one rank."""

    rank: int
    host: str
    pid: int
    beat: int  # incremented with every write
    time: str
    state: State
    phase: str  # preparation, first_step, step, evaluation, save
    step: int
    seconds: float  # spent in this phase so far
    deadline: float | None  # of this phase, in seconds; None for no deadline
    collective: str  # the last one called
    error: str = ""  # of a failed rank
    verdict: str = ""  # of the rank that reported why the run ends

    @property
    def is_overdue(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and self.seconds >= self.deadline


@dataclass(frozen=True)
class Answer:
    """The details that a rank publishes once its deadline has passed."""

    waiting: bool  # whether its main thread is inside a collective
    place: str  # where its main thread is
    stacks: str
    trace: list[list[Any]] = field(default_factory=list)  # the latest train.ranks.watchdog.collectives.Call entries


def path_of(folder: Path, rank: int) -> Path:
    """Return a rank's heartbeat file in the run folder."""
    return folder / HEARTBEATS / f"rank_{rank:05d}.json"


def answer_path(folder: Path, rank: int) -> Path:
    """Return the file of a rank's answer."""
    return folder / HEARTBEATS / f"rank_{rank:05d}.answer.json"


def read(path: Path) -> Heartbeat | None:
    """Return a heartbeat; None if there is none."""
    return _read(path, Heartbeat)


def read_answer(path: Path) -> Answer | None:
    """Return an answer; None if there is none."""
    return _read(path, Answer)


def _read(path: Path, kind: Any) -> Any:
    try:
        values = json.loads(path.read_text())
        return kind(**{key.name: values[key.name] for key in fields(kind)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, value: Heartbeat | Answer) -> None:
    """Write a file atomically.

    Raises:
        OSError: The file could not be written.
    """
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(value), indent=1) + "\n")
    temporary.replace(path)


def now() -> str:
    """Return the current time as written to files."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class HeartbeatWriter:
    """Writes a rank's heartbeat from its own thread, so that a hanging file system blocks nothing else."""

    def __init__(self, path: Path, describe: Callable[[int], Heartbeat]):
        self._path = path
        self._describe = describe
        self._wake, self._done = threading.Event(), threading.Event()
        self._written = threading.Condition()
        self._requested, self._beat, self._served = 0, 0, 0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Write immediately, then every `BEAT_SECONDS`."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._thread.is_alive()

    def write_now(self, *, timeout: float) -> bool:
        """Write now and wait; return whether it finished within `timeout`. Does nothing before `start`."""
        if not self.is_running:
            return False
        with self._written:
            self._requested += 1
            request = self._requested
            self._wake.set()
            return self._written.wait_for(lambda: self._served >= request, timeout)

    def stop(self) -> None:
        """Stop writing; wait for a write in progress, but at most 5 seconds."""
        self._done.set()
        self._wake.set()
        if self.is_running:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._done.is_set():
            request = self._requested
            self._wake.clear()
            self._beat += 1
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write(self._path, self._describe(self._beat))
            except OSError:  # a full disk is reported where it matters
                pass
            with self._written:
                self._served = request
                self._written.notify_all()
            if self._requested == request:
                self._wake.wait(BEAT_SECONDS)


def is_process_gone(host: str, pid: int, *, this_host: str) -> bool:
    """Return whether a process on this machine is known to have ended; False for processes on other machines."""
    if host != this_host:
        return False
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:  # another user's process, or no /proc: unknown
        return False
    return state in ("Z", "X")
