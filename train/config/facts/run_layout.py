"""The run folder: what its files are called, which checkpoints it holds, whether its run is finished."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"  # the configuration, defaults filled in
SETTINGS = "settings.json"  # what reports need to know about settings (`train.config.setting`)
EVENTS = "events.jsonl"
STOPPED = "stopped.json"  # left by a run that stopped early, removed when it goes on
STACKS = "stacks.txt"  # after a hang: where every rank stood
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"  # in each checkpoint

_STEP_NAME = re.compile(r"step_(\d{6,})")


def step_name(step: int) -> str:
    """Return what a step's folder is called, in checkpoints/, weights/ and images/."""
    return f"step_{step:06d}"


def complete_steps(checkpoints: Path) -> list[int]:
    """Return the steps of the published checkpoints in a folder, ascending; empty where there is no such folder."""
    names = (_STEP_NAME.fullmatch(path.name) for path in checkpoints.glob("step_*"))
    return sorted(int(match[1]) for match in names if match)


def is_finished(run: Path, steps: int) -> bool:
    """Return whether a run's last step is saved and evaluated: a signal may have come in between."""
    manifest = read_json(run / CHECKPOINTS / step_name(steps) / MANIFEST)
    if manifest is None:
        return False
    return manifest.get("evaluated", steps) == steps or _ended_at(run / EVENTS, steps)


def read_json(path: Path) -> Mapping[str, Any] | None:
    """Return what a JSON file holds; None where it is missing or cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _ended_at(events: Path, steps: int) -> bool:
    """Return whether the last event is the end of the run."""
    try:
        last = json.loads(events.read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return False
    return last["event"] == "finish" and last["step"] == steps
