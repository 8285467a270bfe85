"""Layout of the run folder: file names, published checkpoints, and whether the run is finished."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"  # the configuration with defaults filled in
SETTINGS = "settings.json"  # the properties of settings that reports need (`train.config.setting`)
EVENTS = "events.jsonl"
STOPPED = "stopped.json"  # written by a run that stopped early, removed when it resumes
STACKS = "stacks.txt"  # after a hang: the stacks of every rank
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"  # in each checkpoint
HEARTBEATS = "heartbeat"  # a file per rank
LOCK = "lock"  # exists while the run trains; names the process that writes to the folder

_STEP_NAME = re.compile(r"step_(\d{6,})")


def step_name(step: int) -> str:
    """Return the name of a step's folder in checkpoints/, weights/ and images/."""
    return f"step_{step:06d}"


def complete_steps(checkpoints: Path) -> list[int]:
    """Return the steps of the published checkpoints in a folder, ascending; empty if the folder does not exist."""
    names = (_STEP_NAME.fullmatch(path.name) for path in checkpoints.glob("step_*"))
    return sorted(int(match[1]) for match in names if match)


def is_finished(run: Path, steps: int) -> bool:
    """Return whether a run's last step is both saved and evaluated: a signal may arrive between the two."""
    manifest = read_json(run / CHECKPOINTS / step_name(steps) / MANIFEST)
    if manifest is None:
        return False
    return manifest.get("evaluated", steps) == steps or _ended_at(run / EVENTS, steps)


def read_json(path: Path) -> Mapping[str, Any] | None:
    """Return the contents of a JSON file; None if it is missing or unreadable."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _ended_at(events: Path, steps: int) -> bool:
    """Return whether the last event marks the end of the run."""
    try:
        last = json.loads(events.read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return False
    return last["event"] == "finish" and last["step"] == steps
