"""`python -m launch sweep SWEEP.yaml [key=value ...] [--dry-run] [--parallel N]`: a grid of runs, a few at a time.

Every member is the run that `python -m launch local` starts, in a folder like any other; the file's keys stand in
launch/sweep/members.py. Finished members are passed over, so the same command goes on after any stop.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from launch.local import gpu_names
from launch.ranks import end_with_parent, shown
from launch.sweep import array
from launch.sweep.members import Member, Sweep, members, read_sweep
from train.config.errors import ConfigError
from train.config.facts.exit_codes import STOPPED_EARLY

LOG = Path("logs") / "sweep.log"  # in each member's folder
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_SECONDS = 0.2


class Slot(NamedTuple):
    """The share of this machine that one member gets."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]  # names as in CUDA_VISIBLE_DEVICES; empty where there are none

    def describe(self) -> str:
        """Name the share."""
        cores = f"core{'s' * (len(self.cores) > 1)} {','.join(map(str, self.cores))}"
        return f"GPU{'s' * (len(self.gpus) > 1)} {','.join(self.gpus)}" if self.gpus else cores


class Running(NamedTuple):
    """A member at work."""

    member: Member
    process: subprocess.Popen[bytes]
    slot: Slot
    began: float


@dataclass
class Outcome:
    """What became of the members."""

    finished: list[Member] = field(default_factory=list[Member])
    failed: list[tuple[Member, int]] = field(default_factory=list[tuple[Member, int]])
    stopped: list[Member] = field(default_factory=list[Member])  # by a signal, or not begun because of it


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code.

    Raises:
        ConfigError: What was given is wrong; nothing was started then.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch sweep",
        description="Run a grid or list of runs, a few at a time, then report on them; the same command goes on.",
    )
    parser.add_argument("sweep", help="a YAML file, like configs/sweeps/placements.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for all members, like steps=100")
    parser.add_argument("--parallel", type=int, help="members at a time (default: the file's)")
    parser.add_argument("--dry-run", action="store_true", help="list the members and their commands")
    parser.add_argument("--cluster", metavar="FILE", help="submit it as a SLURM array to this cluster")
    given = parser.parse_intermixed_args(arguments)
    if given.parallel is not None and given.parallel < 1:
        raise ConfigError([f"--parallel: {given.parallel} is too small; write 1 or more"])
    sweep = read_sweep(given.sweep, given.overrides)
    found = members(sweep)
    if given.cluster is not None:
        about = shlex.join(["python", "-m", "launch", "sweep", *(word for word in arguments if word != "--dry-run")])
        at_once = given.parallel or sweep.parallel
        return array.submit(sweep, found, file=given.cluster, at_once=at_once, about=about, dry_run=given.dry_run)
    slots = shares(sweep, given.parallel)
    if given.dry_run:
        _list(sweep, found, slots)
        return 0
    return run(sweep, found, slots)


def command(member: Member, ranks: int) -> list[str]:
    """Return the command that runs a member, the same that a person would type."""
    return [sys.executable, "-m", "launch", "local", *member.arguments, "--ranks", str(ranks)]


def _list(sweep: Sweep, found: Sequence[Member], slots: Sequence[Slot]) -> None:
    print(
        f"{sweep.name}: {len(found)} members, {len(slots)} at a time, {sweep.ranks} rank{'s' * (sweep.ranks > 1)} each"
    )
    for member in found:
        state = "finished" if member.is_finished else "goes on" if member.is_begun else "new"
        print(f"\n{member.name}  ({state})\n$ {shown(command(member, sweep.ranks))}")


# ------------------------------------------------------------------------------------------------------- the machine


def shares(sweep: Sweep, parallel: int | None) -> list[Slot]:
    """Share cores and GPUs out between the members that run at a time.

    Args:
        sweep: Its `parallel` counts where the command line says nothing; else it is one member per GPU (and rank),
            or per two cores.
        parallel: From the command line.
    """
    cores, devices = sorted(os.sched_getaffinity(0)), gpu_names()
    fitting = len(devices) // sweep.ranks if devices else len(cores) // (2 * sweep.ranks)
    count = parallel or sweep.parallel or max(1, fitting)
    return [Slot(_share(cores, slot, count), _gpu_share(devices, slot, sweep.ranks)) for slot in range(count)]


def _share(cores: Sequence[int], slot: int, slots: int) -> tuple[int, ...]:
    if slots >= len(cores):  # more members than cores: a core each, shared
        return (cores[slot % len(cores)],)
    return tuple(cores[slot * len(cores) // slots : (slot + 1) * len(cores) // slots])


def _gpu_share(devices: Sequence[str], slot: int, ranks: int) -> tuple[str, ...]:
    if not devices:
        return ()
    return tuple(devices[(slot * ranks + n) % len(devices)] for n in range(min(ranks, len(devices))))


# ------------------------------------------------------------------------------------------------------- running


def run(sweep: Sweep, found: Sequence[Member], slots: Sequence[Slot]) -> int:
    """Run what is not finished, then report; returns 0, 1 where a member failed, 75 where a signal stopped it."""
    outcome = Outcome(finished=[member for member in found if member.is_finished])
    waiting = deque(member for member in found if not member.is_finished)
    passed_over = f", {len(outcome.finished)} finished before" if outcome.finished else ""
    print(f"{sweep.name}: {len(found)} members{passed_over}, {len(slots)} at a time", flush=True)
    _Pool(sweep, slots, len(found), outcome).work_off(waiting)
    if outcome.stopped:
        print(f"stopped: {len(outcome.finished)} of {len(found)} members are finished; start the same command to go on")
    _tell_failures(outcome)
    if outcome.stopped:
        return STOPPED_EARLY
    code = _report(sweep, outcome) if sweep.report and outcome.finished else 0
    return 1 if outcome.failed or code else 0


class _Pool:
    """The members at work, and the signals that are passed on to them."""

    def __init__(self, sweep: Sweep, slots: Sequence[Slot], total: int, outcome: Outcome) -> None:
        self._sweep, self._total, self._outcome = sweep, total, outcome
        self._free, self._slots = deque(slots), len(slots)
        self._running: list[Running] = []
        self._signal: int | None = None
        self._told: set[int] = set()  # processes that a signal was passed on to; a second one would force them

    def work_off(self, waiting: deque[Member]) -> None:
        """Run all that waits, or until a signal; every process has ended then."""
        before = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        try:
            while self._running or (waiting and self._signal is None):
                while waiting and self._free and self._signal is None:
                    self._start(waiting.popleft())
                time.sleep(_POLL_SECONDS)
                self._collect()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self._outcome.stopped.extend(waiting)

    def _pass_on(self, number: int, _: object) -> None:
        self._signal = number
        for running in self._running:
            if running.process.poll() is None:
                self._told.add(running.process.pid)
                running.process.send_signal(number)

    def _start(self, member: Member) -> None:
        slot, log = self._free.popleft(), member.folder / LOG
        log.parent.mkdir(parents=True, exist_ok=True)
        self._say("start", member, slot.describe())
        with log.open("ab") as file:
            process = subprocess.Popen(
                command(member, self._sweep.ranks),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=_environment(slot, alone=self._slots == 1),
                start_new_session=True,  # a terminal's Ctrl-C reaches it once, through us
                preexec_fn=_settle(slot),
            )
        self._running.append(Running(member, process, slot, time.monotonic()))
        if self._signal is not None and process.pid not in self._told:  # it came while the process was being made
            process.send_signal(self._signal)

    def _collect(self) -> None:
        ended = [running for running in self._running if running.process.poll() is not None]
        for running in ended:
            self._running.remove(running)
            self._free.append(running.slot)
            self._judge(running)

    def _judge(self, running: Running) -> None:
        member, code = running.member, running.process.returncode
        took = _duration(time.monotonic() - running.began)
        if code == 0:
            self._outcome.finished.append(member)
            self._say("done", member, took)
        elif code == STOPPED_EARLY or (self._signal is not None and code != 2):
            self._outcome.stopped.append(member)
            self._say("stopped", member, f"{took}, exit code {code}; goes on from its last checkpoint")
        else:
            self._outcome.failed.append((member, code))
            self._say("FAILED", member, f"{took}, exit code {code}: {_last_line(member.folder / LOG)}")

    def _say(self, event: str, member: Member, more: str) -> None:
        ended = len(self._outcome.finished) + len(self._outcome.failed)
        width = len(str(self._total))
        print(f"[{ended:{width}}/{self._total}] {event:7} {member.name}  {more}", flush=True)


def _environment(slot: Slot, *, alone: bool) -> dict[str, str]:
    """Return a member's environment; beside others its threads sleep while they wait, unless the user decided."""
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus)} if slot.gpus else {})}
    if not alone and "GOMP_SPINCOUNT" not in environment:
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def _settle(slot: Slot) -> Callable[[], None]:
    """Return what a member's process does first: keep to its cores, and end cleanly should we be killed."""

    def settle() -> None:
        os.sched_setaffinity(0, slot.cores)  # train takes its threads from it
        end_with_parent()

    return settle


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "(its log is empty)"


def _tell_failures(outcome: Outcome) -> None:
    if not outcome.failed:
        return
    print(f"failed: {len(outcome.failed)}; the same command tries them again")
    for member, code in outcome.failed:
        log = member.folder / LOG
        print(f"  {member.name}  exit code {code}  {log}\n    {_last_line(log)}")


def _report(sweep: Sweep, outcome: Outcome) -> int:
    folder = outcome.finished[0].folder.parent
    runs = sorted(str(member.folder) for member in outcome.finished)
    made = [sys.executable, "-m", "analysis", "report", *runs, "--out", str(folder / "report")]
    code = subprocess.run(made, check=False).returncode
    if code:
        print(f"the report could not be made (exit code {code}): {shown(made)}", file=sys.stderr)
    return code
