"""Sweeps on this machine: `python -m launch sweep SWEEP.yaml [key=value ...] [--dry-run] [--parallel N]`.

Every member is an ordinary run, started with `python -m launch local` in its own run folder, or makes the pseudo labels
of one; members may come after others. launch/sweep/sweep_file.py documents the file's keys. Finished members are
skipped, so the same command resumes a sweep after any interruption.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence

from launch.check import CheckFailedError, check
from launch.ranks import shell_line
from launch.sweep import array
from launch.sweep.members import Member, RunMember, members, representatives, runs_of
from launch.sweep.pool import Outcome, Pool, command, last_line
from launch.sweep.slots import Slot, shares
from launch.sweep.sweep_file import MOST_MEMBERS, Sweep, read_sweep
from train.config.errors import ConfigError
from train.config.facts.exit_codes import STOPPED_EARLY


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code.

    Raises:
        ConfigError: The arguments or the sweep are invalid; nothing is started.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch sweep",
        description="Run a grid, list or chain of runs, a few at a time, then write a report; rerun the command to "
        "resume.",
    )
    parser.add_argument("sweep", help="YAML file, e.g. configs/sweeps/placements.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for all runs, e.g. steps=100")
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


def check_data(runs: Sequence[RunMember]) -> None:
    """Check data, tokenizer and starting weights of runs, each kind once, before any member starts.

    Raises:
        ConfigError: With every fault, and a member that has it.
        CheckFailedError: A check itself fails.
    """
    faults: list[str] = []
    for member in representatives(runs):
        try:
            check(member.arguments)
        except ConfigError as error:
            faults += [f"{fault} (in {member.name})" for fault in error.faults]
    if faults:
        raise ConfigError(faults)


def _list(sweep: Sweep, loaded: Sequence[Member], slots: Sequence[Slot]) -> None:
    ranks = f"{sweep.ranks} rank{'s' * (sweep.ranks > 1)} each"
    print(f"{sweep.name}: {len(loaded)} members, {len(slots)} at a time, {ranks}")
    for member in loaded:
        state = "finished" if member.is_finished else "resumes" if member.is_begun else "new"
        after = "" if member.after is None else f", after {member.after.name}"
        print(f"\n{member.name}  ({state}{after})\n$ {shell_line(command(member, sweep.ranks))}")


def run(sweep: Sweep, loaded: Sequence[Member], slots: Sequence[Slot]) -> int:
    """Run the unfinished members, then report; return 0, 1 if a member failed, or 75 if a signal stopped the sweep.

    Raises:
        ConfigError: The data of a member are invalid; none has started.
        CheckFailedError: They could not be checked.
    """
    finished = {member.name: member for member in loaded if member.is_finished}  # reads every byte of last checkpoints
    outcome = Outcome(finished=finished)
    waiting = [member for member in loaded if member.name not in finished]
    # A run after one that is not finished has nothing to be checked yet; it is when it starts.
    check_data([member for member in runs_of(waiting) if outcome.is_ready(member)])
    skipped = f", {len(outcome.finished)} already finished" if outcome.finished else ""
    print(f"{sweep.name}: {len(loaded)} members{skipped}, {len(slots)} at a time", flush=True)
    Pool(sweep, slots, len(loaded), outcome).run_all(waiting)
    if outcome.stopped:
        done = f"{len(outcome.finished)} of {len(loaded)} members are finished"
        print(f"stopped: {done}; run the same command to resume")
    _report_failures(outcome)
    _report_waiting(outcome)
    if outcome.stopped:
        return STOPPED_EARLY
    runs = runs_of(outcome.finished.values())
    code = _report(runs) if sweep.report and runs else 0
    return 1 if outcome.failed or code else 0


def _report_failures(outcome: Outcome) -> None:
    if not outcome.failed:
        return
    print(f"failed: {len(outcome.failed)}; run the same command to retry")
    for member, code in outcome.failed:
        print(f"  {member.name}  exit code {code}  {member.log}\n    {last_line(member.log)}")


def _report_waiting(outcome: Outcome) -> None:
    if not outcome.waiting:
        return
    print(f"not started: {len(outcome.waiting)}")
    for member in outcome.waiting:
        if member.after is not None:
            print(f"  {member.name}  waits for {member.after.name}")


def _report(runs: Sequence[RunMember]) -> int:
    """Write the report on finished runs, with a part for each task; return its exit code."""
    folders = sorted(str(member.folder) for member in runs)
    out = str(runs[0].folder.parent / "report")
    reporting = [sys.executable, "-m", "analysis", "report", *folders, "--out", out]
    code = subprocess.run(reporting, check=False).returncode
    if code:
        print(f"the report failed (exit code {code}): {shell_line(reporting)}", file=sys.stderr)
    return code
