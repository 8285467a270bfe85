"""Stages in order of worth, each a child process with a bound, within the seconds that are left.

A stage runs in a session of its own. At its bound, every process of that session is killed: its training runs have
process groups of their own, so that the stage can end them one by one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.gpu import report

NOMINAL_SECONDS = 480.0  # what the bounds below are stated for; with more seconds they grow in proportion
GRACE = 3.0  # seconds beyond its bound in which a stage writes its last results


class Stage(NamedTuple):
    """A stage and its share of the time."""

    name: str
    seconds: float  # bound
    least: float  # with less than this left, it is not started


class Outcome(NamedTuple):
    """How a stage ended."""

    stage: str
    state: str
    seconds: float
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.stage}: {self.state}, {self.seconds:.0f} s" + (f" ({self.reason})" if self.reason else "")


def run_stages(
    stages: Sequence[Stage],
    out: Path,
    *,
    seconds: float,
    command: Callable[[Stage, float], Sequence[str]],
    environment: Mapping[str, str] | None = None,
    after: Callable[[Outcome], None] = print,
) -> list[Outcome]:
    """Run stages one after another, going on after a failure; drop those for which too little time is left.

    Args:
        stages: In order of worth.
        out: Folder for results and logs.
        seconds: For all of them.
        command: Returns the words that run a stage within a bound in seconds.
        environment: Of the stages; None for this process's.
        after: Called after each stage.
    """
    end = time.monotonic() + seconds
    growth = max(1.0, seconds / NOMINAL_SECONDS)
    outcomes = []
    for stage in stages:
        left = end - time.monotonic()
        if left < stage.least:
            outcome = Outcome(stage.name, report.NOT_RUN, 0.0, f"{left:.0f} s left, at least {stage.least:.0f} needed")
        else:
            bound = max(1.0, min(stage.seconds * growth, left - GRACE))
            outcome = _run(stage, out, command(stage, bound), bound=bound, environment=environment)
        report.close(out, stage.name, state=outcome.state, seconds=outcome.seconds, reason=outcome.reason)
        outcomes.append(outcome)
        after(outcome)
    return outcomes


def _run(
    stage: Stage, out: Path, words: Sequence[str], *, bound: float, environment: Mapping[str, str] | None
) -> Outcome:
    log = out / f"{stage.name}.log"
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        code = process.wait(timeout=bound + GRACE)
        reason = _reason(out, stage.name, code)
    except subprocess.TimeoutExpired:
        code, reason = None, f"killed at its bound of {bound:.0f} s"
    finally:
        kill_session(process.pid)
        process.wait()
    return Outcome(stage.name, report.OK if code == 0 else report.FAILED, time.monotonic() - began, reason)


def _reason(out: Path, stage: str, code: int) -> str | None:
    """Return why a stage failed: its failed items, else the last line of its log."""
    if code == 0:
        return None
    items = (report.read(out / f"{stage}.json") or {"items": {}})["items"]
    failed = [name for name, item in items.items() if item.get("state") == report.FAILED]
    return f"failed: {', '.join(failed)}" if failed else f"exit code {code}: {last_line(out / f'{stage}.log')}"


def last_line(path: Path) -> str:
    """Return the last line of a log, shortened; empty if there is none."""
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "")


def kill_session(leader: int) -> None:
    """Kill every process of a session; several passes, as one may be starting another."""
    for _ in range(3):
        members = [pid for pid in _processes() if _session_of(pid) == leader]
        for pid in sorted(members, key=lambda pid: pid == os.getpid()):  # itself last
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not members:
            return
        time.sleep(0.05)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _session_of(pid: int) -> int | None:
    with suppress(OSError):
        return os.getsid(pid)
    return None
