"""Joint image filters and drawn images small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SIZE = [32, 40]
KINDS = ("depth_upsampling", "texture_removal", "saliency_upsampling", "cross_modality_restoration")
_JUDGED_BY = {
    "texture_removal": "procedural-textures",
    "saliency_upsampling": "procedural-objects",
    "cross_modality_restoration": "procedural-modalities",
}


def tiny_filter_config(folder: Path, kind: str) -> dict[str, Any]:
    """Return the settings of a run of some seconds, in a folder of its own; kind is that of the task."""
    scenes = {"path": "procedural-scenes", "size": SIZE}
    data: dict[str, Any] = {
        "sources": [{**scenes, "start": 0, "stop": 6}],
        "validation_sources": [{**scenes, "start": 100, "stop": 103, "units_per_value": 100}],
        "crop": 24,
        "flips": True,
    }
    if kind.endswith("upsampling"):
        data["scale"] = 4
    if kind in _JUDGED_BY:
        data["validation_sources"] = [{"path": _JUDGED_BY[kind], "size": SIZE, "start": 0, "stop": 3}]
    return {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "steps": 6,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "log_every": 1,
        "evaluate_every": 3,
        "task": {"kind": kind, "data": data, "shown_images": 1},
        "optim": {"lr": 1e-3, "weight_decay": 0.0, "gradient_clipping": None},
        "engine": {"precision": "fp32", "deterministic": True},
        "checkpoint": {"every": 2, "keep": None},
    }


def tiny_filter_file(folder: Path, kind: str = "depth_upsampling") -> Path:
    """Write the configuration; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_filter_config(folder, kind)))
    return path
