"""A run of some seconds of any task."""

from __future__ import annotations

from pathlib import Path

from tests import tiny_boxes
from tests.tiny import tiny_file
from tests.tiny_filter import tiny_filter_file
from tests.tiny_scores import tiny_scores_file


def tiny_task_file(folder: Path, kind: str) -> Path:
    """Write the configuration of a run of a task; returns its path."""
    if kind == "language_model":
        return tiny_file(folder)
    if kind == "score_upsampling":
        return tiny_scores_file(folder)
    if kind in tiny_boxes.KINDS:
        return tiny_boxes.tiny_boxes_file(folder, kind, pretrained=True)
    return tiny_filter_file(folder, kind)
