"""Starting the ranks of one node and staying with them: signals go to the ranks, their exit code comes back.

torchrun kills ranks 30 s after SIGTERM and dies of SIGUSR1. So it runs in a session of its own, signals pass it by, and
`train.torchrun` ends with the exit code of its ranks. Where torchrun has been ended all the same, a run that stopped
early is known by what it left in its folder (`stopped.json`).
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

STOPPED_EARLY = 75  # on a signal, with a checkpoint saved: start the same command again (EX_TEMPFAIL of sysexits.h)
_TORCHRUN = "train.torchrun"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
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
    if code == 0:
        return 0
    if code == STOPPED_EARLY or _stopped_since(began, run_folder):
        return STOPPED_EARLY
    _repeat_the_verdict(began, run_folder)
    return 1 if code < 0 else code


def _follow(command: Sequence[str]) -> int:
    """Run a command to its end, passing signals on to the ranks; returns its exit code."""
    # torchrun would announce that it sets this; the ranks choose their threads themselves.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    child = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_settle)

    def forward(number: int, _: object) -> None:
        for pid in _children(child.pid) if _TORCHRUN in command else [child.pid]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _stopped_since(moment: float, run_folder: Path) -> bool:
    """Return whether the run itself said, after this moment, that it stopped early with a checkpoint."""
    path = run_folder / "stopped.json"
    try:
        return path.stat().st_mtime >= moment - 1 and json.loads(path.read_text())["exit_code"] == STOPPED_EARLY
    except (OSError, ValueError, KeyError):
        return False


def _repeat_the_verdict(moment: float, run_folder: Path) -> None:
    """Print last which rank held the run up, where one has just been found out: others speak on their way out."""
    path = run_folder / "stacks.txt"
    try:
        if path.stat().st_mtime >= moment - 1:
            print(path.read_text().partition("\n")[0], file=sys.stderr, flush=True)
    except OSError:
        return
