"""Restarts of a job, recorded in its run folder, and the limits on them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from train.config.facts.run_layout import CHECKPOINTS, complete_steps

Ending = Literal["stopped early", "time limit", "node lost", "preempted", "unknown"]
# The run had no say in these. "unknown": the job was killed together with the script that would have recorded it.
_NOT_COUNTED = ("preempted", "unknown")


class Start(TypedDict):
    """One start of a job."""

    step: int  # newest complete checkpoint at the start
    ended: Ending


class Starts(TypedDict):
    """Contents of logs/starts.json."""

    job: str
    starts: list[Start]


class Limits(NamedTuple):
    """Limits on the restarts of a job; None for no limit."""

    restarts: int | None
    without_progress: int | None  # in a row, each without a newer complete checkpoint than any before


def newest_step(run_folder: Path) -> int:
    """Return the step of the newest complete checkpoint, or 0 if there is none."""
    return max(complete_steps(run_folder / CHECKPOINTS), default=0)


def note_start(run_folder: Path, *, job: str, limits: Limits) -> str | None:
    """Record that a job is about to start its ranks; return the reason if it should not.

    SLURM restarts a job without asking after a preemption or the loss of a node, so the limits are checked here too.

    Args:
        run_folder: Folder of the run.
        job: Id of the job, or of the array task. A requeued job keeps its id; a new submission begins to count anew.
        limits: Limits on restarts.
    """
    starts = _starts(run_folder, job)
    reason = _exhausted(run_folder, job, starts, limits)
    if reason is None:
        _write(run_folder, job, [*starts, {"step": newest_step(run_folder), "ended": "unknown"}])
    return reason


def note_ending(run_folder: Path, *, job: str, ending: Ending, limits: Limits) -> str | None:
    """Record how the last start ended; return the reason if the job should not be restarted once more."""
    starts = _starts(run_folder, job)
    if starts:
        starts[-1]["ended"] = ending
        _write(run_folder, job, starts)
    return _exhausted(run_folder, job, starts, limits)


def last_start_time(run_folder: Path) -> float:
    """Return when the last start was recorded, on the clock of the run folder's file system; 0 if none was."""
    path = _path(run_folder)
    return path.stat().st_mtime if path.exists() else 0.0


def _exhausted(run_folder: Path, job: str, starts: Sequence[Start], limits: Limits) -> str | None:
    """Return the limit that one more restart would exceed."""
    if not starts:
        return None
    if limits.restarts is not None and len(starts) > limits.restarts:
        return (
            f"{run_folder}: job {job} has been restarted {limits.restarts} times, the limit set by `restarts` in the "
            "cluster file; the job ends here. Submit it again to continue"
        )
    idle = _without_progress(starts, newest_step(run_folder))
    if limits.without_progress is None or idle <= limits.without_progress:
        return None
    newest = newest_step(run_folder)
    where = f"the newest checkpoint is still that of step {newest}" if newest else "there is no checkpoint yet"
    return (
        f"{run_folder}: no progress after {limits.without_progress} restarts of job {job} in a row (the limit set by "
        f"`restarts_without_progress` in the cluster file): {where}. The job ends here; the log above shows why. Save "
        "more often (checkpoint.every) or request more time, then submit it again"
    )


def _without_progress(starts: Sequence[Start], newest: int) -> int:
    """Return how many of the latest restarts, the next one included, come without a newer checkpoint."""
    steps = [*(start["step"] for start in starts), newest]
    best, idle = steps[0], 0
    for number, start in enumerate(starts):
        step = steps[number + 1]
        if step > best:
            best, idle = step, 0
        elif start["ended"] not in _NOT_COUNTED:
            idle += 1
    return idle


def _starts(run_folder: Path, job: str) -> list[Start]:
    try:
        record: Starts = json.loads(_path(run_folder).read_text())
        if record["job"] != job:
            return []
        return [{"step": int(start["step"]), "ended": start["ended"]} for start in record["starts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write(run_folder: Path, job: str, starts: list[Start]) -> None:
    path, record = _path(run_folder), Starts(job=job, starts=starts)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record) + "\n")
    temporary.replace(path)


def _path(run_folder: Path) -> Path:
    return run_folder / "logs" / "starts.json"
