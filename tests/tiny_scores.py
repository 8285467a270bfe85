"""Runs of the up-sampling of score maps, small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.tiny_boxes import TRAINING
from tests.tiny_filter import tiny_filter_config


def tiny_scores_config(folder: Path) -> dict[str, Any]:
    """Return the settings of a run of some seconds, in a folder of its own."""
    data = {
        "sources": [TRAINING],
        "validation_sources": [{**TRAINING, "start": 100, "stop": 103}],
        "crop": 24,
        "flips": True,
    }
    config = tiny_filter_config(folder, "depth_upsampling")
    return {**config, "task": {"kind": "score_upsampling", "data": data, "shown_images": 1}}


def tiny_scores_file(folder: Path) -> Path:
    """Write the configuration; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_scores_config(folder)))
    return path
