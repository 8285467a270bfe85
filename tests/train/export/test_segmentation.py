"""Exported networks of box-supervised segmentation, in a process that cannot see the project."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ranks import Ranks
from tests.tiny_boxes import tiny_boxes_file, tiny_images
from tests.train.test_resume import train
from train.config.load import read_run
from train.export import __main__ as export
from train.export.model_folder import chosen_checkpoint, load_model
from train.tasks import build_task
from train.tasks.segmentation.exhibits import boxes_with_classes

CLIENT = """
import importlib.util, json, sys
assert importlib.util.find_spec("modeling") is None, "the project can be seen"
import numpy as np
from transformers import AutoModel
folder, image, boxes, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert not model.training
if boxes == "none":
    found = model.segment(image)
    assert found.mask.mode == "P" and found.mask.getpalette()[3:6] == [128, 0, 0]
    np.savez(out, mask=np.asarray(found.mask), scores=found.scores.numpy())
else:
    found = model.labels(image, json.loads(boxes))
    np.savez(out, crf=found.crf.numpy(), retrieved=found.retrieved.numpy(), attention=found.attention.numpy())
print(json.dumps(model.config.id2label))
"""


def exported(ranks: Ranks, folder: Path, kind: str) -> tuple[Path, Path]:
    """Train a step and export it; returns the run and the exported folder."""
    ranks(1, train, str(tiny_boxes_file(folder, kind)), ["steps=1"])
    run, out = folder / "runs/tiny", folder / "out"
    assert export.main([str(run), str(out)]) == 0
    return run, out


def client(folder: Path, image: Path, boxes: str, out: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLIENT, str(folder), str(image), boxes, str(out)],
        cwd=folder.parent,
        env={**os.environ, "HF_HOME": str(folder.parent / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["box_classification", "semantic_segmentation"])
def test_an_exported_network_does_what_the_trained_one_does(ranks: Ranks, tmp_path: Path, kind: str) -> None:
    run, folder = exported(ranks, tmp_path, kind)
    sample, image, out = tiny_images().read(2), tmp_path / "image.png", tmp_path / "found.npz"
    Image.fromarray(sample.image).save(image)
    boxes = boxes_with_classes(sample)
    named = [(tiny_images().classes[number], *place) for number, *place in boxes]
    model = load_model(build_task(read_run(run)), chosen_checkpoint(run, None)).eval()
    names = client(folder, image, json.dumps(named) if kind == "box_classification" else "none", out)
    assert list(names.values()) == ["background", "disk", "triangle", "diamond", "cross"]
    with np.load(out) as found:
        if kind == "box_classification":
            labels = model.labels(sample.image, boxes)  # type: ignore[operator]
            np.testing.assert_array_equal(found["crf"], labels.crf)
            np.testing.assert_array_equal(found["retrieved"], labels.retrieved)
            np.testing.assert_allclose(found["attention"], labels.attention, rtol=0, atol=1e-6)
        else:
            segmented = model.segment(sample.image)  # type: ignore[operator]
            np.testing.assert_array_equal(found["mask"], np.asarray(segmented.mask))
            np.testing.assert_allclose(found["scores"], segmented.scores, rtol=0, atol=1e-6)


def test_an_export_needs_no_initial_weights_and_names_them(ranks: Ranks, tmp_path: Path) -> None:
    config = tiny_boxes_file(tmp_path, pretrained=True)
    ranks(1, train, str(config), ["steps=1", "task.model.frozen_backbone=true"])
    weights = tmp_path / "weights.pth"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.unlink()
    assert export.main([str(tmp_path / "runs/tiny"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert f"weights.pth, SHA-256 {digest}" in card
    assert "backbone lite0, pretrained and kept as it was" in card


def test_the_card_says_classes_data_and_initial_weights(ranks: Ranks, tmp_path: Path) -> None:
    _, folder = exported(ranks, tmp_path, "semantic_segmentation")
    card = (folder / "README.md").read_text()
    for part in (
        "pseudo labels from boxes with the noise-aware loss",
        "classes disk, triangle, diamond, cross",
        "backbone lite0, trained from random weights",
        "initial weights of the backbone: random",
        "made by step 6 of made",
        "model.segment(",
        "pipeline_tag: image-segmentation",
        "| validation miou |",
    ):
        assert part in card
