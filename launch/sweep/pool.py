"""Running the members of a sweep, a few at a time, and forwarding signals to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from launch.ranks import end_with_parent
from launch.sweep.members import LabelsMember, Member
from launch.sweep.slots import Slot
from launch.sweep.sweep_file import Sweep
from train.config.facts.exit_codes import STOPPED_EARLY
from train.config.facts.openmp import wait_passively

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_SECONDS = 0.2


class Running(NamedTuple):
    """A running member."""

    member: Member
    process: subprocess.Popen[bytes]
    slot: Slot
    began: float


@dataclass
class Outcome:
    """Members by how they ended."""

    finished: dict[str, Member] = field(default_factory=dict[str, Member])  # by name
    failed: list[tuple[Member, int]] = field(default_factory=list[tuple[Member, int]])
    stopped: list[Member] = field(default_factory=list[Member])  # by a signal, or not started because of one
    waiting: list[Member] = field(default_factory=list[Member])  # not started: the member before is not finished

    def is_ready(self, member: Member) -> bool:
        """Return whether the member that this one comes after, if any, is finished."""
        return member.after is None or member.after.name in self.finished


def command(member: Member, ranks: int) -> list[str]:
    """Return the command that runs a member, as a user would type it; `ranks` are those of a run."""
    if isinstance(member, LabelsMember):
        return [sys.executable, "-m", "train.pseudo_labels", *member.arguments]
    return [sys.executable, "-m", "launch", "local", *member.arguments, "--ranks", str(ranks)]


class Pool:
    """The running members, and the signals forwarded to them."""

    def __init__(self, sweep: Sweep, slots: Sequence[Slot], total: int, outcome: Outcome) -> None:
        self._sweep, self._total, self._outcome = sweep, total, outcome
        self._free, self._slots = deque(slots), len(slots)
        self._running: list[Running] = []
        self._signal: int | None = None
        self._signaled: set[int] = set()  # pids that have had a signal; a second one would make them quit at once

    def run_all(self, members: Sequence[Member]) -> None:
        """Run members, each after its predecessor; none is started after a signal. Return once all have exited."""
        left = list(members)
        before = {number: signal.signal(number, self._forward) for number in _SIGNALS}
        try:
            self._start_ready(left)
            while self._running:
                time.sleep(_POLL_SECONDS)
                self._collect()
                self._start_ready(left)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for member in left:
            (self._outcome.stopped if self._outcome.is_ready(member) else self._outcome.waiting).append(member)

    def _start_ready(self, left: list[Member]) -> None:
        """Start members while there are slots, and remove them from those that are left."""
        while self._free and self._signal is None:
            position = next((n for n, member in enumerate(left) if self._outcome.is_ready(member)), None)
            if position is None:
                return
            self._start(left.pop(position))

    def _forward(self, number: int, _: object) -> None:
        self._signal = number
        for running in self._running:
            if running.process.poll() is None:
                self._signaled.add(running.process.pid)
                running.process.send_signal(number)

    def _start(self, member: Member) -> None:
        slot, log = self._free.popleft(), member.log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log("start", member, slot.describe())
        with log.open("ab") as file:
            process = subprocess.Popen(
                command(member, self._sweep.ranks),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=_environment(slot, alone=self._slots == 1),
                start_new_session=True,  # Ctrl-C reaches it only once, through us
                preexec_fn=_settle(slot),
            )
        self._running.append(Running(member, process, slot, time.monotonic()))
        if self._signal is not None and process.pid not in self._signaled:  # it arrived while the process was starting
            process.send_signal(self._signal)

    def _collect(self) -> None:
        ended = [running for running in self._running if running.process.poll() is not None]
        for running in ended:
            self._running.remove(running)
            self._free.append(running.slot)
            self._record(running)

    def _record(self, running: Running) -> None:
        member, code = running.member, running.process.returncode
        took = _duration(time.monotonic() - running.began)
        if code == 0:
            self._outcome.finished[member.name] = member
            self._log("done", member, took)
        elif code == STOPPED_EARLY or (self._signal is not None and code != 2):
            self._outcome.stopped.append(member)
            self._log("stopped", member, f"{took}, exit code {code}; will resume")
        else:
            self._outcome.failed.append((member, code))
            self._log("FAILED", member, f"{took}, exit code {code}: {last_line(member.log)}")

    def _log(self, event: str, member: Member, more: str) -> None:
        ended = len(self._outcome.finished) + len(self._outcome.failed)
        width = len(str(self._total))
        print(f"[{ended:{width}}/{self._total}] {event:7} {member.name}  {more}", flush=True)


def _environment(slot: Slot, *, alone: bool) -> dict[str, str]:
    """Return a member's environment; with other members beside it, idle threads sleep unless the user set otherwise."""
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus)} if slot.gpus else {})}
    if not alone:
        wait_passively(environment)
    return environment


def _settle(slot: Slot) -> Callable[[], None]:
    """Return the setup of a member's process: pin it to its cores, and end it cleanly if we are killed."""

    def settle() -> None:
        os.sched_setaffinity(0, slot.cores)  # train derives its number of threads from this
        end_with_parent()

    return settle


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "(its log is empty)"
