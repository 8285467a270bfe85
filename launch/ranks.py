"""Starting the ranks of one node and staying with them: signals go to the ranks, their exit code comes back.

torchrun kills ranks 30 s after SIGTERM and dies of SIGUSR1. So it runs in a session of its own, signals pass it by, and
`train.ranks.torchrun` ends with the exit code of its ranks. Where torchrun has been ended all the same, a run that
stopped early is known by what it left in its folder (`stopped.json`).
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from train.config.facts.exit_codes import STOPPED_EARLY
from train.config.facts.run_layout import STACKS, STOPPED

_TORCHRUN = "train.ranks.torchrun"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_BY_SIGNAL = 128  # exit codes above it: ended by the signal of this number more (as shells say it)
_PR_SET_PDEATHSIG = 1


class Nodes(NamedTuple):
    """The nodes of a job; ranks meet at the first of them."""

    size: int
    head: str  # host name of the first node
    port: int
    job: str  # what tells this job's meeting from another's
    is_head: bool  # whether this is the first node; a machine can not always tell by its own names


def training_command(arguments: Sequence[str], *, ranks: int, nodes: Nodes | None = None) -> list[str]:
    """Return the command that trains on this node.

    Args:
        arguments: What `python -m train` takes.
        ranks: Processes on this node.
        nodes: None: this machine alone.
    """
    if ranks == 1 and nodes is None:
        return [sys.executable, "-m", "train", *arguments]
    meeting = (
        ["--standalone"]
        if nodes is None
        else [
            f"--nnodes={nodes.size}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={nodes.head}:{nodes.port}",
            f"--rdzv-id={nodes.job}",
            f"--rdzv-conf=is_host={str(nodes.is_head).lower()}",
        ]
    )
    torchrun = [sys.executable, "-m", _TORCHRUN, *meeting, f"--nproc-per-node={ranks}"]
    return [*torchrun, "--max-restarts=0", "-m", "train", *arguments]


def shown(command: Sequence[str]) -> str:
    """Return a command as one would type it."""
    return shlex.join(["python", *command[1:]] if command[0] == sys.executable else command)


def run(command: Sequence[str], *, run_folder: Path) -> int:
    """Run a training command to its end and return the exit code of its ranks.

    SIGTERM, SIGINT and SIGUSR1 to this process reach every rank once each; a terminal's Ctrl-C too, since the ranks do
    not share its process group. Should this process be killed, torchrun is told to end.
    """
    began = time.time()
    code = _follow(command)
    from_outside = code > _BY_SIGNAL  # then torchrun can not tell how its ranks ended, but they can
    if code == 0:
        return 0
    if code == STOPPED_EARLY or _stopped_since(began, run_folder, in_preparation=from_outside):
        return STOPPED_EARLY
    # A rank that torchrun has ended because of another may say that it stopped in preparation: this run has failed.
    (run_folder / STOPPED).unlink(missing_ok=True)
    _repeat_the_verdict(began, run_folder)
    return 1 if from_outside else code


def _follow(command: Sequence[str]) -> int:
    """Run a command to its end, passing signals on to the ranks; returns its exit code, 128 + N for signal N."""
    is_torchrun = _TORCHRUN in command
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that came while the process was being made
    has_begun = True

    def forward(number: int, _: object) -> None:
        nonlocal has_begun
        if child is None:
            early.append(number)
            return
        ranks = _children(child.pid) if is_torchrun else [child.pid]
        if not ranks:
            has_begun = False
            child.terminate()
        for pid in ranks:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=_settle)
        for number in early:
            forward(number, None)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0 and not is_torchrun:
        print(f"the run was killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    code = _BY_SIGNAL - code if code < 0 else code
    if not has_begun and code == _BY_SIGNAL + signal.SIGTERM:
        print("stopped before there were ranks: nothing is lost; start the same command again", file=sys.stderr)
        return STOPPED_EARLY
    return code


def end_with_parent() -> None:
    """Have Linux tell this process to end (SIGTERM) when the one that started it is gone, SIGKILL included."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _settle() -> None:
    # SLURM may send its signals to every process of a job. torchrun dies of this one; a rank listens to it in time.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    end_with_parent()


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started: of torchrun, the ranks."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def _stopped_since(moment: float, run_folder: Path, *, in_preparation: bool) -> bool:
    """Return whether the run itself said, after this moment, that it stopped early.

    Args:
        moment: In seconds since the epoch.
        run_folder: Where it says so.
        in_preparation: Whether to believe it of a stop before the first step too, which one rank decides by itself.
    """
    path = run_folder / STOPPED
    try:
        noted = json.loads(path.read_text())
        return path.stat().st_mtime >= moment - 1 and (in_preparation or noted["step"] > 0)
    except (OSError, ValueError, KeyError):
        return False


def _repeat_the_verdict(moment: float, run_folder: Path) -> None:
    """Print last which rank held the run up, where one has just been found out: others speak on their way out."""
    path = run_folder / STACKS
    try:
        if path.stat().st_mtime >= moment - 1:
            print(path.read_text().partition("\n")[0], file=sys.stderr, flush=True)
    except OSError:
        return
