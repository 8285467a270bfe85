"""The command train.pseudo_labels: its files, kills and resumes, what it refuses, what it prints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling.segmentation.facts_bap import VOID
from modeling.segmentation.images_bap import palette_image
from tests.ranks import Ranks
from tests.tiny_boxes import tiny_boxes_file, tiny_images
from tests.tiny_filter import tiny_filter_file
from tests.train.test_resume import train
from train.config.errors import ConfigError
from train.config.load import load
from train.data.annotated.label_folder import open_labels
from train.pseudo_labels.__main__ import main
from train.pseudo_labels.quality import counts, quality

ROOT = Path(__file__).parents[3]
QUICK = ["--workers", "1", "grabcut=false", "crf.steps=2"]


@pytest.fixture(scope="module")
def trained(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of box_classification with a checkpoint, without labels."""
    folder = tmp_path_factory.mktemp("boxes")
    ranks(1, train, str(tiny_boxes_file(folder)), ["steps=1"])
    return folder / "runs/tiny"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


def files_of(labels: Path) -> dict[str, bytes]:
    """Return all files but labels.json, which has the seconds."""
    return {
        str(path.relative_to(labels)): path.read_bytes()
        for path in sorted(labels.rglob("*"))
        if path.is_file() and path.name != "labels.json"
    }


def test_every_image_gets_two_labels_and_a_record(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--workers", "1"]) == 0
    labels, images = run / "labels/step_000001", tiny_images()
    facts = json.loads((labels / "labels.json").read_text())
    found = open_labels(str(labels), images, key="task.data.labels")
    for index in range(len(images)):
        sample = images.read(index)
        inside = np.zeros(sample.image.shape[:2], bool)
        for x0, y0, x1, y1 in sample.boxes:
            inside[y0:y1, x0:x1] = True
        for each in found.read(index):
            assert each.shape == inside.shape
            assert not each[~inside].any()
            assert set(np.unique(each)) <= {0, *sample.classes.tolist()}
        with Image.open(labels / f"crf/{sample.name}.png") as image:
            assert image.mode == "P"
            assert image.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]
    assert facts["settings"]["attention_threshold"] == 0.99
    assert list(facts["images"]) == [images.name(index) for index in range(len(images))]
    assert sorted(path.stem for path in (labels / "shown").iterdir()) == [images.name(index) for index in range(4)]
    assert not (run / "labels/step_000001.partial").exists()
    printed = capsys.readouterr().out
    for way in ("filled boxes", "GrabCut in each box", "labels of the CRF", "retrieved labels"):
        assert way in printed
    assert f"{facts['quality']['miou']['crf']:.3f}" in printed


def test_the_record_has_the_quality_of_the_files(run: Path) -> None:
    assert main([str(run), *QUICK]) == 0
    labels, images = run / "labels/step_000001", tiny_images()
    facts, found = json.loads((labels / "labels.json").read_text()), open_labels(str(labels), images, key="labels")
    confusion, agreeing, pixels = np.zeros((5, 5), np.int64), 0, 0
    for index in range(len(images)):
        mask, (crf, retrieved) = images.read(index).mask, found.read(index)
        assert mask is not None
        np.add.at(confusion, (mask, crf), 1)
        agreeing, pixels = agreeing + int((crf == retrieved).sum()), pixels + crf.size
    right = confusion.diagonal()
    ious = right / (confusion.sum(0) + confusion.sum(1) - right)
    assert facts["quality"]["iou"]["crf"] == pytest.approx(dict(zip(images.classes, ious, strict=True)))
    assert facts["quality"]["miou"]["crf"] == pytest.approx(ious.mean())
    assert facts["agreement"] == pytest.approx(agreeing / pixels)
    assert "grabcut" not in facts["quality"]["miou"]


def test_the_same_command_again_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *QUICK]) == 0
    first = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main([str(run), *QUICK]) == 0
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_other_settings_do_not_overwrite_labels(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *QUICK]) == 0
    assert main([str(run), *QUICK, "attention_threshold=0.5", "crf.xy=9"]) == 2
    message = capsys.readouterr().err
    assert "made with another attention_threshold and crf than now" in message
    assert main([str(run), *QUICK, "shown_images=1"]) == 0  # decides nothing


def start(run: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "train.pseudo_labels", str(run), "grabcut=false", "crf.steps=2", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(run: Path, *words: str) -> int:
    with start(run, *words) as process:
        process.communicate()
    return process.returncode


def wait_for_a_label(run: Path, process: subprocess.Popen[str]) -> None:
    while not list(run.glob("labels/*.partial/rows/*.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_started_again_it_gives_the_same_files(run: Path, tmp_path: Path, number: signal.Signals) -> None:
    many = "sources=[{path: procedural-objects, stop: 60, size: [96, 128]}]"
    unbroken = Path(shutil.copytree(run, tmp_path / "unbroken"))
    assert finish(unbroken, many, "--workers", "1") == 0
    broken = start(run, many, "--workers", "2")
    wait_for_a_label(run, broken)
    broken.send_signal(number)
    _, said = broken.communicate()
    if number == signal.SIGTERM:
        assert broken.returncode == 75
        assert "SIGTERM after" in said
    kept = {path: path.stat().st_mtime_ns for path in run.glob("labels/*.partial/crf/*.png")}
    done = {path.stem for path in run.glob("labels/*.partial/rows/*.json")}
    assert 0 < len(done) < 60
    assert not (run / "labels/step_000001").exists()
    time.sleep(1)  # workers of a killed command end with it
    assert finish(run, many, "--workers", "2") == 0
    again = files_of(run / "labels/step_000001")
    assert again == files_of(unbroken / "labels/step_000001")
    for path, changed in kept.items():
        if path.stem in done:  # is not made again
            assert (run / "labels/step_000001/crf" / path.name).stat().st_mtime_ns == changed


@pytest.mark.slow
def test_a_second_command_waits_its_turn(run: Path) -> None:
    many = "sources=[{path: procedural-objects, stop: 60, size: [96, 128]}]"
    first = start(run, many, "--workers", "1")
    wait_for_a_label(run, first)
    second = start(run, many, "--workers", "1")
    _, said = second.communicate()
    first.terminate()
    first.communicate()
    assert second.returncode == 2
    assert "another command is making these labels" in said


def test_what_cannot_be_is_one_message(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*words: str) -> str:
        assert main(list(words)) == 2
        return capsys.readouterr().err

    assert "not a run folder" in message(str(tmp_path))
    assert "did you mean attention_threshold?" in message(str(run), "atention_threshold=1")
    assert "crf.steps: 0 is too small" in message(str(run), "crf.steps=0")
    assert "step 9" in message(str(run), "--step", "9")
    twice = "sources=[{path: procedural-objects, stop: 2}, {path: procedural-objects, stop: 1}]"
    assert "two images are named objects-00000" in message(str(run), twice)
    depth = tmp_path / "depth"
    depth.mkdir()
    (depth / "config.yaml").write_text(tiny_filter_file(tmp_path / "made").read_text())
    assert "a run of depth_upsampling; labels are made by a run of box_classification" in message(str(depth))


def test_labels_of_other_images_boxes_or_classes_are_refused(run: Path, tmp_path: Path) -> None:
    def fault(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            open_labels(str(path), tiny_images(), key="task.data.labels")
        return str(caught.value)

    assert main([str(run), *QUICK]) == 0
    labels = run / "labels/step_000001"
    assert f"did you mean {labels}?" in fault(run)
    assert "does not exist; `python -m train.pseudo_labels RUN` makes it" in fault(tmp_path / "none")
    facts = json.loads((labels / "labels.json").read_text())

    def changed(**changes: object) -> str:
        (labels / "labels.json").write_text(json.dumps(facts | changes))
        return fault(labels)

    name = tiny_images().name(0)
    assert f"the labels of {name} were made from another image" in changed(images=facts["images"] | {name: "0"})
    left = {key: value for key, value in facts["images"].items() if key != name}
    assert f"has no labels of {name}" in changed(images=left)
    assert "and 1 more of 6 images" in changed(images={})
    assert "has labels of the classes cat" in changed(classes=["background", "cat"])
    assert "make the labels again" in changed(format=0)
    (labels / "labels.json").write_text(json.dumps(facts))
    (labels / f"crf/{name}.png").unlink()
    assert f"crf/{name}.png does not exist" in fault(labels)
    (labels / "labels.json").unlink()
    labels.rename(labels.with_name("step_000001.partial"))
    assert "is not finished" in fault(labels)


def test_a_change_of_labels_is_a_change_of_data(run: Path, tmp_path: Path) -> None:
    from train.tasks import build_task

    assert main([str(run), *QUICK]) == 0
    name = tiny_images().name(3)
    path = run / f"labels/step_000001/retrieved/{name}.png"

    def fingerprint() -> str:
        config = tiny_boxes_file(tmp_path / "masks", "semantic_segmentation")
        return build_task(load(config, [f"task.data.labels={run}/labels/step_000001"])).data_fingerprint

    before = fingerprint()
    assert fingerprint() == before
    with Image.open(path) as image:
        labels = torch.from_numpy(np.array(image))
    labels[0, 0] = 1
    palette_image(labels).save(path)
    assert fingerprint() != before


# ------------------------------------------------------------------------------------------------------------- quality


def test_counts_leave_out_void_on_either_side() -> None:
    labels = np.array([[0, 1, 1, VOID], [2, 2, 1, 0]], np.uint8)
    truth = np.array([[0, 1, 2, 1], [2, VOID, 1, 1]], np.uint8)
    right, union = counts(labels, truth, 3)
    assert right == [1, 2, 1]
    assert union == [2, 4, 2]


def test_quality_is_of_all_images_together() -> None:
    rows = [
        {"counts": {"crf": ([8, 1, 0], [10, 4, 0])}},
        {"counts": None},
        {"counts": {"crf": ([0, 3, 0], [10, 4, 0])}},
    ]
    found = quality(rows, ["background", "cat", "dog"])
    assert found == {
        "images": 2,
        "miou": {"crf": pytest.approx((0.4 + 0.5) / 2)},
        "iou": {"crf": {"background": 0.4, "cat": 0.5, "dog": None}},
    }
    assert quality([{"counts": None}], ["background"]) is None


@pytest.mark.slow
def test_labels_of_a_network_that_knows_its_images_beat_their_boxes(ranks: Ranks, tmp_path: Path) -> None:
    """From random weights, on four images: the boxes are learned by heart, and the labels fit the objects."""
    drawn = "[{path: procedural-objects, stop: 4, size: [96, 128]}]"
    settings = [f"output_dir={tmp_path}", f"task.data.sources={drawn}", f"task.data.validation_sources={drawn}"]
    settings += ["steps=50", "evaluate_every=50", "checkpoint.every=50", "global_batch_size=4", "micro_batch_size=4"]
    ranks(1, train, str(ROOT / "configs/box_segmentation/quickstart-boxes.yaml"), [*settings, "log_every=10"])
    run = tmp_path / "boxes-quickstart"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row["loss"] for row in rows if "loss" in row]
    assert trained[0] > 0.5
    assert trained[-1] < 0.1
    assert main([str(run), "--workers", "1", "grabcut=false"]) == 0
    found = json.loads((run / "labels/step_000050/labels.json").read_text())["quality"]["miou"]
    assert found["crf"] > found["filled_boxes"] + 0.1
