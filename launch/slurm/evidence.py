"""Evidence that a start of a job leaves behind: exit codes of its nodes, an early stop, failed ranks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from launch.slurm.job import JobState
from train.config.facts.run_layout import STOPPED, read_json

_NODES = Path("logs") / "nodes"  # in the run folder: how each node's launcher ended


class NodeEnding(NamedTuple):
    """The exit code of a node's launcher, and when it was recorded, on the clock of the run folder's file system."""

    code: int
    time: float


class Stop(NamedTuple):
    """An early stop that the ranks have recorded; at step 0 none of them had begun to train."""

    step: int
    time: float


@dataclass(frozen=True)
class Evidence:
    """What a start of a job has left behind, apart from the state of its nodes."""

    code: int  # of srun: the highest of all nodes, which may be that of a node ended because of another
    state: JobState = field(default_factory=JobState)
    restarts: int = 0  # of this job so far
    stop: Stop | None = None
    nodes: Mapping[str, NodeEnding] = field(default_factory=dict[str, NodeEnding])  # those that recorded their end


def note_node(run: Path, node: str, *, start: str, code: int) -> None:
    """Record the exit code of a node's launcher, before srun learns of it.

    Args:
        run: Folder of the run.
        node: Name of the node.
        start: Id of the job's start: job and number of restarts.
        code: The exit code.
    """
    path = run / _NODES / f"{node}.json"
    with suppress(OSError):  # on a full disk the exit code itself still gets through
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"start": start, "exit_code": code}) + "\n")


def read_nodes(run: Path, nodes: Sequence[str], *, start: str) -> dict[str, NodeEnding]:
    """Return how the launchers of a start ended, by node, where they have recorded it."""
    endings: dict[str, NodeEnding] = {}
    for node in nodes:
        path = run / _NODES / f"{node}.json"
        record = read_json(path) or {}
        if record.get("start") == start:
            endings[node] = NodeEnding(int(record["exit_code"]), path.stat().st_mtime)
    return endings


def read_stop(run: Path) -> Stop | None:
    """Return the early stop recorded in a run folder, if there is one."""
    record = read_json(run / STOPPED)
    return None if record is None else Stop(int(record.get("step", 0)), (run / STOPPED).stat().st_mtime)


def first_failure(run: Path, *, since: float) -> str | None:
    """Return which rank failed with an error of its own since a time, and how, from the heartbeats."""
    for path in sorted((run / "heartbeat").glob("rank_*.json")):
        beat = read_json(path) if re.fullmatch(r"rank_\d+", path.stem) and path.stat().st_mtime >= since else None
        if beat is not None and beat.get("state") == "failed":
            return f"rank {beat['rank']} ({beat['host']}) failed at step {beat['step']}: {beat['error']}"
    return None
