"""Launcher for the ranks of one node: forwards signals to the ranks and returns their exit code.

torchrun kills its ranks 30 s after SIGTERM and dies on SIGUSR1. It therefore runs in its own session, signals bypass
it, and `train.ranks.torchrun` exits with the exit code of its ranks. If torchrun is killed anyway, a run that stopped
early is recognized by the `stopped.json` in its folder.
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

from train.config.facts.exit_codes import REFUSED, STOPPED_EARLY
from train.config.facts.run_layout import LOCK, STACKS, STOPPED

_TORCHRUN = "train.ranks.torchrun"
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_BY_SIGNAL = 128  # exit code 128 + N: killed by signal N, as in a shell
_ORPHANS_SECONDS = 40.0  # for ranks to save and exit once torchrun was killed; they allow themselves 30
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class Nodes(NamedTuple):
    """The nodes of a job; the first one hosts the rendezvous."""

    size: int
    head: str  # host name of the first node
    port: int
    job: str  # rendezvous id; keeps jobs on the same host apart
    is_head: bool  # whether this is the first node; a machine cannot always tell from its own host names


def training_command(arguments: Sequence[str], *, ranks: int, nodes: Nodes | None = None) -> list[str]:
    """Return the command that trains on this node.

    Args:
        arguments: Arguments of `python -m train`.
        ranks: Processes on this node.
        nodes: Nodes of the job; None for this machine alone.
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


def shell_line(command: Sequence[str]) -> str:
    """Return a command as a line to paste into a shell."""
    return shlex.join(["python", *command[1:]] if command[0] == sys.executable else command)


def run(command: Sequence[str], *, run_folder: Path) -> int:
    """Run a training command to its end and return the exit code of its ranks.

    Each SIGTERM, SIGINT or SIGUSR1 sent to this process reaches every rank exactly once, Ctrl-C included, since the
    ranks are not in the terminal's process group. If this process is killed, torchrun receives SIGTERM; if torchrun is
    killed, its ranks do, and become children of this process.
    """
    began = time.time()
    code = _follow(command)
    from_outside = code > _BY_SIGNAL  # torchrun itself was killed: only the ranks know how they ended
    if code == 0 or (code == REFUSED and (run_folder / LOCK).exists()):  # in use by another start: leave it alone
        return code
    if code == STOPPED_EARLY or _stopped_since(began, run_folder, in_preparation=from_outside):
        return STOPPED_EARLY
    # A rank that torchrun terminated because another one failed may have reported an early stop: the run still failed.
    (run_folder / STOPPED).unlink(missing_ok=True)
    _repeat_verdict(began, run_folder)
    return 1 if from_outside else code


def _follow(command: Sequence[str]) -> int:
    """Run a command to its end and forward signals to its ranks; return its exit code, 128 + N for signal N."""
    is_torchrun = _TORCHRUN in command
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals received while the process was starting
    has_ranks = False  # or had: they may have ended, and torchrun not yet

    def forward(number: int, _: object) -> None:
        if child is None:
            early.append(number)
            return
        ranks = (_children(child.pid) or _orphans()) if is_torchrun else [child.pid]
        if not ranks and not has_ranks:
            child.terminate()
        for pid in ranks:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=_settle)
        for number in early:
            forward(number, None)
        while is_torchrun and not has_ranks and child.poll() is None:
            has_ranks = bool(_children(child.pid))
            time.sleep(0.05)
        code = child.wait()
        if code < 0 and is_torchrun:
            _await_orphans()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0 and not is_torchrun:
        print(f"the run was killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    code = _BY_SIGNAL - code if code < 0 else code
    if is_torchrun and not has_ranks and code == _BY_SIGNAL + signal.SIGTERM:
        print("stopped before any rank had started: nothing is lost; run the same command again", file=sys.stderr)
        return STOPPED_EARLY
    return code


def end_with_parent() -> None:
    """Make Linux send this process SIGTERM when its parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _settle() -> None:
    # SLURM may signal every process of a job. SIGUSR1 would kill torchrun; ranks install their own handler in time.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    end_with_parent()


def _children(pid: int) -> list[int]:
    """Return the child processes of a process; for torchrun, these are the ranks."""
    children: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has exited in the meantime
            continue
        if int(fields[1]) == pid:
            children.append(int(stat.parent.name))
    return children


def _orphans() -> list[int]:
    """Return the ranks of a torchrun that was killed; the kernel has made them children of this process."""
    return [pid for pid in _children(os.getpid()) if _was_started_by_torchrun(pid)]


def _was_started_by_torchrun(pid: int) -> bool:
    try:
        return b"TORCHELASTIC_RUN_ID=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _await_orphans() -> None:
    """Wait for the ranks of a torchrun that was killed, which end with it; kill those that do not."""
    if _orphans():
        print("torchrun was killed; its ranks save a checkpoint and end", file=sys.stderr, flush=True)
    deadline = time.monotonic() + _ORPHANS_SECONDS
    while orphans := _orphans():
        if time.monotonic() > deadline:
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _stopped_since(start: float, run_folder: Path, *, in_preparation: bool) -> bool:
    """Return whether the run has reported an early stop since a given time.

    Args:
        start: Time in seconds since the epoch.
        run_folder: Folder of the run, which holds the report.
        in_preparation: Whether a stop before the first step counts too; a single rank reports that one by itself.
    """
    path = run_folder / STOPPED
    try:
        stop = json.loads(path.read_text())
        return path.stat().st_mtime >= start - 1 and (in_preparation or stop["step"] > 0)
    except (OSError, ValueError, KeyError):
        return False


def _repeat_verdict(start: float, run_folder: Path) -> None:
    """Print the watchdog's verdict again, if there is a new one, so that the exiting ranks' output does not bury it."""
    path = run_folder / STACKS
    try:
        if path.stat().st_mtime >= start - 1:
            print(path.read_text().partition("\n")[0], file=sys.stderr, flush=True)
    except OSError:
        return
