"""Training runs as separate processes that a test may signal, stop and kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_under_way: list[subprocess.Popen[str]] = []  # the runs that `training` has started
HANG_SECONDS = 900  # what no step of a test takes on any machine; a test waits so long only where something hangs


@contextmanager
def training(
    path: Path,
    overrides: list[str],
    *,
    ranks: int = 1,
    fault: str | None = None,
    module: str = "tests.faults.faulty_rank",
) -> Iterator[subprocess.Popen[str]]:
    """Start `python -m launch local`; whatever is left of it at the end is killed.

    Args:
        path: The configuration.
        overrides: Settings.
        ranks: How many.
        fault: One that `module` knows, where something is to go wrong inside the ranks.
        module: What the ranks run then, in place of `train`.
    """
    launch = ["launch", "local"] if fault is None else ["tests.faults.faulty_launch", module, fault]
    command = [sys.executable, "-m", *launch, str(path), *overrides, "--ranks", str(ranks)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    _under_way.append(process)
    try:
        yield process
    finally:
        _under_way.remove(process)
        for pid in [*descendants(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill the launcher and all that it has started at once, as a power cut does."""
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def rank_processes(launcher: int) -> dict[int, int]:
    """Process ids of the training processes by rank."""
    found = {}
    for pid in descendants(launcher):
        with suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            ranks = [int(variable[5:]) for variable in variables if variable.startswith(b"RANK=")]
            modules = {b"train", b"tests.faults.faulty_rank", b"tests.train.ranks.watchdog.hanging_rank"}
            if modules & set(words) and ranks:
                found[ranks[0]] = pid
    return found


def wait_until(condition: Callable[[], Any], *, seconds: float = HANG_SECONDS, pause: float = 0.02) -> Any:
    """Wait until something is so, and return it; fails at once where the run that was to bring it about has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = bool(_under_way) and all(process.poll() is not None for process in _under_way)
        value = condition()
        if value:
            return value
        if ended:
            output = [process.communicate() for process in _under_way]
            raise AssertionError(f"the run ended with {[process.returncode for process in _under_way]}: {output}")
        time.sleep(pause)
    raise AssertionError("it did not come to that")


def rows(run: Path, file: str = "metrics") -> list[dict[str, Any]]:
    """The whole lines of a file of a run that may be growing."""
    path = run / f"{file}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(run: Path) -> dict[int, float]:
    """Training loss by step."""
    return {row["step"]: row["loss"] for row in rows(run) if "loss" in row}


def validations(run: Path) -> dict[int, float]:
    """Validation loss by step."""
    return {row["step"]: row["validation_loss"] for row in rows(run) if "validation_loss" in row}


def parent(pid: int) -> int:
    """Parent of a process; 0 if it has ended."""
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """State, parent and further fields of a process; those of one that has ended if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def still_there(pids: list[int], *, seconds: float = 60.0) -> list[int]:
    """Those processes that have not ended after a time in which all should have."""
    until = time.monotonic() + seconds
    while (left := [pid for pid in pids if _stat(pid)[0] not in "XZ"]) and time.monotonic() < until:
        time.sleep(0.05)
    return left
