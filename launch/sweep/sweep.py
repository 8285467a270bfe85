"""Sweeps on this machine: `python -m launch sweep SWEEP.yaml [key=value ...] [--dry-run] [--parallel N]`.

Every member is an ordinary run, started with `python -m launch local` in its own run folder; launch/sweep/sweep_file.py
documents the file's keys. Finished members are skipped, so the same command resumes a sweep after any interruption.
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

from launch.check import CheckFailedError, check
from launch.local import gpu_names
from launch.ranks import end_with_parent, shell_line
from launch.sweep import array
from launch.sweep.members import Member, members, representatives
from launch.sweep.sweep_file import MOST_MEMBERS, Sweep, read_sweep
from train.config.errors import ConfigError
from train.config.facts.exit_codes import STOPPED_EARLY
from train.config.facts.openmp import wait_passively

LOG = Path("logs") / "sweep.log"  # in each member's folder
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_POLL_SECONDS = 0.2


class Slot(NamedTuple):
    """The cores and GPUs assigned to one member."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]  # names as in CUDA_VISIBLE_DEVICES; empty if there are none

    def describe(self) -> str:
        """Return the GPUs, or else the cores, as text."""
        cores = f"core{'s' * (len(self.cores) > 1)} {','.join(map(str, self.cores))}"
        return f"GPU{'s' * (len(self.gpus) > 1)} {','.join(self.gpus)}" if self.gpus else cores


class Running(NamedTuple):
    """A running member."""

    member: Member
    process: subprocess.Popen[bytes]
    slot: Slot
    began: float


@dataclass
class Outcome:
    """Members by how they ended."""

    finished: list[Member] = field(default_factory=list[Member])
    failed: list[tuple[Member, int]] = field(default_factory=list[tuple[Member, int]])
    stopped: list[Member] = field(default_factory=list[Member])  # by a signal, or not started because of one


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code.

    Raises:
        ConfigError: The arguments or the sweep are invalid; nothing is started.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch sweep",
        description="Run a grid or list of runs, a few at a time, then write a report; rerun the command to resume.",
    )
    parser.add_argument("sweep", help="YAML file, e.g. configs/sweeps/placements.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for all members, e.g. steps=100")
    parser.add_argument("--parallel", type=int, help="concurrent members (default: as in the file)")
    parser.add_argument("--dry-run", action="store_true", help="list the members and their commands")
    parser.add_argument("--cluster", metavar="FILE", help="submit the sweep as a SLURM array to this cluster")
    options = parser.parse_intermixed_args(arguments)
    if options.parallel is not None and not 1 <= options.parallel <= MOST_MEMBERS:
        raise ConfigError([f"--parallel: {options.parallel} is out of range; write 1 to {MOST_MEMBERS:_}"])
    sweep = read_sweep(options.sweep, options.overrides)
    loaded = members(sweep)
    if options.cluster is not None:
        about = shlex.join(["python", "-m", "launch", "sweep", *(word for word in arguments if word != "--dry-run")])
        at_once = options.parallel or sweep.parallel
        return array.submit(sweep, loaded, file=options.cluster, at_once=at_once, about=about, dry_run=options.dry_run)
    slots = shares(sweep, options.parallel)
    if options.dry_run:
        _list(sweep, loaded, slots)
        return 0
    try:
        return run(sweep, loaded, slots)
    except CheckFailedError as error:
        print(error, file=sys.stderr)
        return 1


def check_data(waiting: Sequence[Member]) -> None:
    """Check data, tokenizer and starting weights of the members, each kind once, before any member starts.

    Raises:
        ConfigError: With every fault, and a member that has it.
        CheckFailedError: A check itself fails.
    """
    faults: list[str] = []
    for member in representatives(waiting):
        try:
            check(member.arguments)
        except ConfigError as error:
            faults += [f"{fault} (in {member.name})" for fault in error.faults]
    if faults:
        raise ConfigError(faults)


def command(member: Member, ranks: int) -> list[str]:
    """Return the command that runs a member, as a user would type it."""
    return [sys.executable, "-m", "launch", "local", *member.arguments, "--ranks", str(ranks)]


def _list(sweep: Sweep, loaded: Sequence[Member], slots: Sequence[Slot]) -> None:
    ranks = f"{sweep.ranks} rank{'s' * (sweep.ranks > 1)} each"
    print(f"{sweep.name}: {len(loaded)} members, {len(slots)} at a time, {ranks}")
    for member in loaded:
        state = "finished" if member.is_finished else "resumes" if member.is_begun else "new"
        print(f"\n{member.name}  ({state})\n$ {shell_line(command(member, sweep.ranks))}")


# ------------------------------------------------------------------------------------------------------- the machine


def shares(sweep: Sweep, parallel: int | None) -> list[Slot]:
    """Divide cores and GPUs among concurrent members.

    Args:
        sweep: The sweep; if neither it nor the command line sets `parallel`, the default is one rank per GPU, or per
            two cores.
        parallel: Value from the command line; takes precedence over the sweep's.
    """
    cores, devices = sorted(os.sched_getaffinity(0)), gpu_names()
    fitting = len(devices) // sweep.ranks if devices else len(cores) // (2 * sweep.ranks)
    count = parallel or sweep.parallel or max(1, fitting)
    return [Slot(_share(cores, slot, count), _gpu_share(devices, slot, sweep.ranks)) for slot in range(count)]


def _share(cores: Sequence[int], slot: int, slots: int) -> tuple[int, ...]:
    if slots >= len(cores):  # at least as many members as cores: one core each, possibly shared
        return (cores[slot % len(cores)],)
    return tuple(cores[slot * len(cores) // slots : (slot + 1) * len(cores) // slots])


def _gpu_share(devices: Sequence[str], slot: int, ranks: int) -> tuple[str, ...]:
    if not devices:
        return ()
    return tuple(devices[(slot * ranks + n) % len(devices)] for n in range(min(ranks, len(devices))))


# ------------------------------------------------------------------------------------------------------- running


def run(sweep: Sweep, loaded: Sequence[Member], slots: Sequence[Slot]) -> int:
    """Run the unfinished members, then report; return 0, 1 if a member failed, or 75 if a signal stopped the sweep.

    Raises:
        ConfigError: The data of a member are invalid; none has started.
        CheckFailedError: They could not be checked.
    """
    finished = {member.name for member in loaded if member.is_finished}  # reads every byte of their last checkpoints
    outcome = Outcome(finished=[member for member in loaded if member.name in finished])
    waiting = deque(member for member in loaded if member.name not in finished)
    check_data(waiting)
    skipped = f", {len(outcome.finished)} already finished" if outcome.finished else ""
    print(f"{sweep.name}: {len(loaded)} members{skipped}, {len(slots)} at a time", flush=True)
    _Pool(sweep, slots, len(loaded), outcome).run_all(waiting)
    if outcome.stopped:
        done = f"{len(outcome.finished)} of {len(loaded)} members are finished"
        print(f"stopped: {done}; run the same command to resume")
    _report_failures(outcome)
    if outcome.stopped:
        return STOPPED_EARLY
    code = _report(sweep, outcome) if sweep.report and outcome.finished else 0
    return 1 if outcome.failed or code else 0


class _Pool:
    """The running members, and the signals forwarded to them."""

    def __init__(self, sweep: Sweep, slots: Sequence[Slot], total: int, outcome: Outcome) -> None:
        self._sweep, self._total, self._outcome = sweep, total, outcome
        self._free, self._slots = deque(slots), len(slots)
        self._running: list[Running] = []
        self._signal: int | None = None
        self._signaled: set[int] = set()  # pids that have had a signal; a second one would make them quit at once

    def run_all(self, waiting: deque[Member]) -> None:
        """Run all waiting members, or those started before a signal; return once every process has exited."""
        before = {number: signal.signal(number, self._forward) for number in _SIGNALS}
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

    def _forward(self, number: int, _: object) -> None:
        self._signal = number
        for running in self._running:
            if running.process.poll() is None:
                self._signaled.add(running.process.pid)
                running.process.send_signal(number)

    def _start(self, member: Member) -> None:
        slot, log = self._free.popleft(), member.folder / LOG
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
            self._outcome.finished.append(member)
            self._log("done", member, took)
        elif code == STOPPED_EARLY or (self._signal is not None and code != 2):
            self._outcome.stopped.append(member)
            self._log("stopped", member, f"{took}, exit code {code}; will resume from its last checkpoint")
        else:
            self._outcome.failed.append((member, code))
            self._log("FAILED", member, f"{took}, exit code {code}: {_last_line(member.folder / LOG)}")

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


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "(its log is empty)"


def _report_failures(outcome: Outcome) -> None:
    if not outcome.failed:
        return
    print(f"failed: {len(outcome.failed)}; run the same command to retry")
    for member, code in outcome.failed:
        log = member.folder / LOG
        print(f"  {member.name}  exit code {code}  {log}\n    {_last_line(log)}")


def _report(sweep: Sweep, outcome: Outcome) -> int:
    folder = outcome.finished[0].folder.parent
    runs = sorted(str(member.folder) for member in outcome.finished)
    reporting = [sys.executable, "-m", "analysis", "report", *runs, "--out", str(folder / "report")]
    code = subprocess.run(reporting, check=False).returncode
    if code:
        print(f"the report failed (exit code {code}): {shell_line(reporting)}", file=sys.stderr)
    return code
