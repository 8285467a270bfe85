"""Drawn objects, and runs of both tasks of box-supervised segmentation, small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from modeling.segmentation.images_bap import palette_image
from modeling.segmentation.lite0_bap import Lite0, wheel_names
from train.config.commands.pseudo_labels import PseudoLabelConfig
from train.config.tasks.box_segmentation import AnnotatedSourceConfig
from train.data.annotated.collection import AnnotatedImages, open_annotated
from train.data.annotated.label_folder import FORMAT

SIZE = [40, 48]
TRAINING = {"path": "procedural-objects", "stop": 6, "size": SIZE}
KINDS = ("box_classification", "semantic_segmentation")


def tiny_boxes_config(folder: Path, kind: str) -> dict[str, Any]:
    """Return the settings of a run of some seconds, in a folder of its own; kind is that of the task."""
    data: dict[str, Any] = {
        "sources": [TRAINING],
        "validation_sources": [{**TRAINING, "start": 100, "stop": 103}],
        "crop": 32,
        "scale": [0.8, 1.2],
        "flips": True,
        "jitter": 0.2,
    }
    task: dict[str, Any] = {
        "kind": kind,
        "model": {"backbone": "lite0", "backbone_weights": "random", "features": 16, "dropout": 0.3},
        "data": data,
        "shown_images": 1,
    }
    if kind == "semantic_segmentation":
        data["labels"] = str(tiny_labels(folder))
    return {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "steps": 6,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "log_every": 1,
        "evaluate_every": 3,
        "task": task,
        "optim": {"lr": 1e-3, "weight_decay": 0.01},
        "engine": {"precision": "fp32", "deterministic": True},
        "checkpoint": {"every": 2, "keep": None},
    }


def tiny_boxes_file(folder: Path, kind: str = "box_classification", *, pretrained: bool = False) -> Path:
    """Write the configuration; returns its path.

    Args:
        folder: Where.
        kind: The task.
        pretrained: Start from weights whose batch norms keep their statistics: the network then sees each image alone.
            Batch norms that learn see their own micro-batch, and those of random weights amplify its roundings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, config = folder / "tiny.yaml", tiny_boxes_config(folder, kind)
    if pretrained:
        config["task"]["model"]["backbone_weights"] = str(tiny_weights(folder, wheel_names()))
    path.write_text(yaml.safe_dump(config))
    return path


def tiny_images() -> AnnotatedImages:
    """Return the training images."""
    source = AnnotatedSourceConfig(path="procedural-objects", stop=6, size=(SIZE[0], SIZE[1]))
    return open_annotated([source], classes=None, path="task.data.sources")


def tiny_labels(folder: Path) -> Path:
    """Write labels that differ along edges: the true masks, moved by a pixel and by three."""
    images, place = tiny_images(), folder / "made/labels/step_000006"
    for kind, pixels in (("crf", 1), ("retrieved", 3)):
        (place / kind).mkdir(parents=True, exist_ok=True)
        for index in range(len(images)):
            mask = images.read(index).mask
            assert mask is not None
            moved = torch.from_numpy(np.roll(mask, pixels, axis=1))
            palette_image(moved).save(place / kind / f"{images.name(index)}.png")
    facts = {
        "format": FORMAT,
        "run": "made",
        "step": 6,
        "settings": PseudoLabelConfig().as_facts(),
        "classes": images.classes,
        "quality": None,
        "agreement": 0.9,
        "images": {images.name(index): images.identity(index) for index in range(len(images))},
    }
    (place / "labels.json").write_text(json.dumps(facts))
    return place


def tiny_weights(folder: Path, names: dict[str, str], suffix: str = ".pth") -> Path:
    """Write random weights of a backbone under other names; returns the file."""
    torch.manual_seed(5)
    backbone = Lite0()
    for norm in backbone.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            torch.nn.init.normal_(norm.running_mean, std=0.1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    tensors = {theirs: backbone.state_dict()[own].clone() for own, theirs in names.items()}
    path = folder / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    return path
