"""Layout of the run folder: file names, published checkpoints, and whether the run is finished."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from train.config.facts.manifest import damaged_files, read_manifest, step_name
from train.config.facts.sealed import DamagedFileError

CONFIG = "config.yaml"  # the configuration with defaults filled in
SETTINGS = "settings.json"  # the properties of settings that reports need (`train.config.setting`)
EVENTS = "events.jsonl"
STOPPED = "stopped.json"  # written by a run that stopped early, removed when it resumes
STACKS = "stacks.txt"  # after a hang: the stacks of every rank
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"  # Hugging Face folders
LABELS = "labels"  # pseudo labels, a folder per step of the model that made them
LABELS_RECORD = "labels.json"  # in a folder of labels once it is complete: their settings
HEARTBEATS = "heartbeat"  # a file per rank
LOCK = "lock"  # exists while the run trains; names the process that writes to the folder

_STEP_NAME = re.compile(r"step_(\d{6,})")


def complete_steps(checkpoints: Path) -> list[int]:
    """Return the steps of the published checkpoints in a folder, ascending; empty if the folder does not exist."""
    names = (_STEP_NAME.fullmatch(path.name) for path in checkpoints.glob("step_*"))
    return sorted(int(match[1]) for match in names if match)


def is_finished(run: Path, steps: int, *, keeps_weights: bool = False) -> bool:
    """Return whether a run's last step is saved and evaluated, and its weights written if the run keeps them.

    A signal or a kill may come in between.

    If the last checkpoint exists, every byte of it is verified (`train.config.facts.manifest`): a run whose result is
    damaged is not finished, and resumes from an older checkpoint. If it does not exist, nothing is read.
    """
    checkpoint = run / CHECKPOINTS / step_name(steps)
    try:
        manifest = read_manifest(checkpoint)
    except DamagedFileError:
        return False
    if damaged_files(checkpoint, manifest) or (keeps_weights and not (run / WEIGHTS / checkpoint.name).exists()):
        return False
    return manifest.get("evaluated", steps) == steps or _ended_at(run / EVENTS, steps)


def read_json(path: Path) -> Mapping[str, Any] | None:
    """Return the contents of a JSON object in a file; None if it is missing or is not one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", content) if isinstance(content, dict) else None


def row_of(line: bytes) -> dict[str, Any] | None:
    """Return the row that a line of a .jsonl file holds; None if the line is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    step = cast("dict[str, Any]", row).get("step")
    return cast("dict[str, Any]", row) if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def _ended_at(events: Path, steps: int) -> bool:
    """Return whether the last event marks the end of the run."""
    try:
        lines = events.read_bytes().splitlines()
    except OSError:
        return False
    last = row_of(lines[-1]) if lines else None
    return last is not None and last.get("event") == "finish" and last["step"] == steps
