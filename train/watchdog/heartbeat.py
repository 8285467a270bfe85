"""RUN/heartbeat/rank_00000.json: where each rank is, rewritten every two seconds; for people, and for its peers."""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

BEAT_SECONDS = 2.0

State = Literal["running", "answering", "failed", "finished", "stopped"]  # stopped: by a signal, in preparation


@dataclass(frozen=True)
class Heartbeat:
    """What one rank says of itself."""

    rank: int
    host: str
    pid: int
    beat: int  # counts up with every writing
    time: str
    state: State
    phase: str  # preparation, first_step, step, evaluation, save
    step: int
    seconds: float  # in this phase, up to now
    deadline: float | None  # of this phase, in seconds; None: none
    collective: str  # the last that it called
    error: str = ""  # of one that failed
    verdict: str = ""  # of one that has told why the run ends

    @property
    def is_overdue(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and self.seconds >= self.deadline


@dataclass(frozen=True)
class Answer:
    """What a rank tells of itself once its deadline has passed."""

    waiting: bool  # its main thread is inside a collective
    place: str  # where its main thread is
    stacks: str
    trace: list[list[Any]] = field(default_factory=list)  # train.watchdog.collectives.Call, the last ones


def path_of(folder: Path, rank: int) -> Path:
    """Return a rank's heartbeat file in the run folder."""
    return folder / "heartbeat" / f"rank_{rank:05d}.json"


def answer_path(folder: Path, rank: int) -> Path:
    """Return the file of a rank's answer."""
    return folder / "heartbeat" / f"rank_{rank:05d}.answer.json"


def read(path: Path) -> Heartbeat | None:
    """Return a heartbeat; None where there is none."""
    return _read(path, Heartbeat)


def read_answer(path: Path) -> Answer | None:
    """Return an answer; None where there is none."""
    return _read(path, Answer)


def _read(path: Path, kind: Any) -> Any:
    try:
        given = json.loads(path.read_text())
        return kind(**{key.name: given[key.name] for key in fields(kind)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, value: Heartbeat | Answer) -> None:
    """Write a file whole, or not at all.

    Raises:
        OSError: The file system does not take it.
    """
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(value), indent=1) + "\n")
    temporary.replace(path)


def now() -> str:
    """Return the time as it stands in files."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class HeartbeatWriter:
    """Writes a rank's heartbeat from a thread of its own: a file system that hangs holds up nothing else."""

    def __init__(self, path: Path, describe: Callable[[int], Heartbeat]):
        self._path = path
        self._describe = describe
        self._wake, self._done = threading.Event(), threading.Event()
        self._written = threading.Condition()
        self._asked, self._beat, self._answered = 0, 0, 0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Write at once, and then every `BEAT_SECONDS`."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and not stopped."""
        return self._thread.is_alive()

    def write_now(self, *, timeout: float) -> bool:
        """Write and wait until it is done; returns whether it was in time. Does nothing before `start`."""
        if not self.is_running:
            return False
        with self._written:
            self._asked += 1
            asked = self._asked
            self._wake.set()
            return self._written.wait_for(lambda: self._answered >= asked, timeout)

    def stop(self) -> None:
        """Write no more; waits for what is being written, but not for ever."""
        self._done.set()
        self._wake.set()
        if self.is_running:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._done.is_set():
            asked = self._asked
            self._wake.clear()
            self._beat += 1
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write(self._path, self._describe(self._beat))
            except OSError:  # a full disk is told where it harms
                pass
            with self._written:
                self._answered = asked
                self._written.notify_all()
            if self._asked == asked:
                self._wake.wait(BEAT_SECONDS)


def is_process_gone(host: str, pid: int, *, this_host: str) -> bool:
    """Return whether a process of this machine is known to have ended; False for those of other machines."""
    if host != this_host:
        return False
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's, or no /proc: unknown
        return False
    return state in ("Z", "X")
