"""Up-sampling of score maps: where they come from, what is learned and judged, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.joint_filter.modeling_dkn import DKNOutput
from modeling.segmentation.configuration_bap import BoxClassifierConfig, SegmenterConfig
from modeling.segmentation.facts_bap import VOID
from modeling.segmentation.modeling_bap import BoxClassifier, Segmenter
from tests.tiny_scores import tiny_scores_config, tiny_scores_file
from train.config.errors import ConfigError
from train.config.load import load
from train.data.annotated.scores import class_shares
from train.tasks import build_task
from train.tasks.score_upsampling import METHODS, ScoreUpsampling, boundary_band, filtered_scores

CLASSES = ["disk", "triangle", "diamond", "cross"]


class Untouched(nn.Module):
    """A filter that returns its target."""

    def forward(self, guidance: Tensor, target: Tensor) -> DKNOutput:
        return DKNOutput(output=target)


def task_of(folder: Path, *overrides: str) -> ScoreUpsampling:
    task = build_task(load(tiny_scores_file(folder), overrides))
    assert isinstance(task, ScoreUpsampling)
    return task


def figures(task: ScoreUpsampling, model: nn.Module) -> dict[str, float]:
    """Return the figures of a validation."""
    ids = np.arange(task.num_validation_samples)
    sums = task.evaluate(model, task.batch(ids, split="validation", step=0))
    means = {name: float(value / weight) for name, (value, weight) in sums.items()}
    return task.validation_report(means)


def segmenter(folder: Path) -> Segmenter:
    """Return a network of random weights, saved to a folder."""
    torch.manual_seed(1)
    network = Segmenter(SegmenterConfig.of_classes(CLASSES, backbone="lite0", features=16)).eval()
    nn.init.normal_(network.classifier.weight)
    network.save_pretrained(folder)
    return network


# ------------------------------------------------------------------------------------------------------ score maps


def test_made_scores_are_the_shares_of_labeled_pixels_in_a_cell() -> None:
    mask = np.array([[1, 1, 0, 2, 2], [1, VOID, 0, 0, VOID], [VOID, VOID, 3, 3, 3]], np.uint8)
    mask[2, :2] = VOID
    shares = class_shares(mask, 4, 2)
    assert shares.shape == (4, 2, 3)
    assert shares[:, 0, 0].tolist() == [0, 1, 0, 0]
    assert shares[:, 0, 1].tolist() == [0.75, 0, 0.25, 0]
    assert shares[:, 0, 2].tolist() == [0, 0, 1, 0]
    assert shares[:, 1, 0].tolist() == [0.25] * 4  # no labeled pixel
    assert shares[:, 1, 2].tolist() == [0, 0, 0, 1]


def test_scores_of_a_network_are_those_of_its_own_masks(tmp_path: Path) -> None:
    network = segmenter(tmp_path / "network")
    task = task_of(tmp_path, f"task.data.scores={tmp_path / 'network'}", "task.baselines=false")
    task.check()
    sample = task.validation.read(1)
    expected = np.asarray(network.segment(sample.image).mask)
    batch = task.batch(np.array([1]), split="validation", step=0)
    assert np.array_equal(batch["input"][0].argmax(dim=0).numpy(), expected)
    logits = F.interpolate(
        network(torch.from_numpy(sample.image.transpose(2, 0, 1))[None] / 255).logits,
        size=expected.shape,
        mode="bilinear",
    )
    truth = torch.from_numpy(sample.mask).long()
    assert sample.mask is not None
    loss = F.cross_entropy(logits, truth[None], ignore_index=VOID)
    sums = task.evaluate(Untouched(), batch)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(loss.item(), rel=1e-5)


def test_scores_of_files_are_those_of_the_network_that_wrote_them(tmp_path: Path) -> None:
    segmenter(tmp_path / "network")
    by_network = task_of(tmp_path, f"task.data.scores={tmp_path / 'network'}")
    (tmp_path / "files").mkdir()
    for images, maps in (
        (by_network.training, by_network.training_scores),
        (by_network.validation, by_network.validation_scores),
    ):
        for index in range(len(images)):
            np.save(tmp_path / f"files/{images.name(index)}.npy", maps.read(index))
    by_files = task_of(tmp_path, f"task.data.scores={tmp_path / 'files'}")
    by_files.check()
    assert figures(by_files, Untouched()) == figures(by_network, Untouched())
    before = by_files.data_fingerprint
    np.save(tmp_path / f"files/{by_files.training.name(0)}.npy", by_files.training_scores.read(0) + 1)
    assert task_of(tmp_path, f"task.data.scores={tmp_path / 'files'}").data_fingerprint != before


def test_made_scores_depend_on_seed_and_image_alone(tmp_path: Path) -> None:
    one, same, other = task_of(tmp_path), task_of(tmp_path), task_of(tmp_path, "task.data.seed=1")
    assert np.array_equal(one.training_scores.read(2), same.training_scores.read(2))
    assert not np.array_equal(one.training_scores.read(2), other.training_scores.read(2))
    exact = task_of(tmp_path, "task.data.noise=0").training_scores.read(2)
    assert np.allclose(exact.sum(axis=0), 20)  # shares times the temperature of a cosine classifier


# ------------------------------------------------------------------------------------------- what is learned and judged


def test_gradients_reach_the_scores_and_classes_are_filtered_alike(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    model = task.build_model().eval()
    batch = task.batch(np.arange(2), split="training", step=1)
    scores = batch["input"].clone().requires_grad_()
    output = filtered_scores(model, batch["guidance"], scores)
    assert output.shape == scores.shape
    for image in range(2):
        alone = model(batch["guidance"][image : image + 1], scores[image : image + 1, 3:4]).output
        torch.testing.assert_close(output[image, 3], alone[0, 0], rtol=1e-5, atol=1e-6)
    targets = torch.where(batch["valid"], batch["truth"].long(), VOID)[:, 0]
    F.cross_entropy(output, targets, ignore_index=VOID).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad != 0).any(dim=(2, 3)).all()


def test_scores_that_are_left_alone_are_the_bilinear_ones(tmp_path: Path) -> None:
    found = figures(task_of(tmp_path), Untouched())
    assert found["validation_miou"] == found["validation_bilinear_miou"]
    assert found["validation_band_miou"] == found["validation_bilinear_band_miou"]
    assert 0 < found["validation_band_miou"] < found["validation_miou"] < 1
    names = {f"validation_{method}_{region}miou" for method in METHODS for region in ("", "band_")}
    assert names < found.keys()


def test_perfect_scores_are_judged_perfect(tmp_path: Path) -> None:
    """Cells of one pixel: every method is given the truth itself; the CRF alone may still change it."""
    task = task_of(tmp_path, "task.baselines=false")
    (tmp_path / "files").mkdir()
    for images in (task.training, task.validation):
        for index in range(len(images)):
            mask = images.read(index).mask
            assert mask is not None
            scores = class_shares(mask, 5, 1)
            np.save(tmp_path / f"files/{images.name(index)}.npy", scores.astype(np.float32))
    found = figures(task_of(tmp_path, f"task.data.scores={tmp_path / 'files'}", "task.baselines=false"), Untouched())
    assert found["validation_miou"] == found["validation_band_miou"] == 1


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_the_band_is_what_lies_near_a_boundary(reach: int) -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.randint(0, 2, (3, 4), generator=generator).repeat_interleave(5, 0).repeat_interleave(5, 1)
    labeled = torch.rand(truth.shape, generator=generator) > 0.1
    beside = set()
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            for v, u in ((y + 1, x), (y, x + 1)):
                inside = v < truth.shape[0] and u < truth.shape[1]
                if inside and labeled[y, x] and labeled[v, u] and truth[y, x] != truth[v, u]:
                    beside |= {(y, x), (v, u)}
    expected = torch.tensor(
        [
            [any(max(abs(y - v), abs(x - u)) < reach for v, u in beside) for x in range(truth.shape[1])]
            for y in range(truth.shape[0])
        ]
    )
    assert torch.equal(boundary_band(truth, labeled, reach), expected)


# -------------------------------------------------------------------------------------------------- what is refused


def faults_of(folder: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        task_of(folder, *overrides).check()
    return "\n".join(caught.value.faults)


def test_scores_that_do_not_fit_are_one_message(tmp_path: Path) -> None:
    assert "does not exist; give the folder of an exported" in faults_of(tmp_path, "task.data.scores=nothing")
    torch.manual_seed(0)
    boxes = BoxClassifier(BoxClassifierConfig.of_classes(CLASSES, backbone="lite0", features=16))
    boxes.save_pretrained(tmp_path / "boxes")
    said = faults_of(tmp_path, f"task.data.scores={tmp_path / 'boxes'}")
    assert "holds a model of type bap_box_classifier; give an exported run of the task semantic_segmentation" in said
    other = Segmenter(SegmenterConfig.of_classes(["cat"], backbone="lite0", features=16))
    other.save_pretrained(tmp_path / "other")
    assert "knows the classes cat; the images have disk" in faults_of(
        tmp_path, f"task.data.scores={tmp_path / 'other'}"
    )


def test_every_file_of_scores_is_looked_at(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    (tmp_path / "files").mkdir()
    contents: list[Any] = [np.zeros((4, 5, 6), np.float32), np.zeros((5, 5, 6), np.int64), np.zeros((5, 6), np.float32)]
    for index, array in enumerate(contents):
        np.save(tmp_path / f"files/{task.training.name(index)}.npy", array)
    (tmp_path / f"files/{task.training.name(3)}.npy").write_bytes(b"nothing")
    said = faults_of(tmp_path, f"task.data.scores={tmp_path / 'files'}")
    assert said.count("write floating-point ones of shape (5, height, width)") == 3
    assert "cannot be read as an array" in said
    assert f"{task.training.name(4)}.npy does not exist" in said


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data": {"scores": "somewhere", "stride": 4}}, "task.data.stride: has no effect"),
        ({"data": {"scores": "somewhere", "noise": 0.2}}, "task.data.noise: has no effect"),
        ({"baselines": False, "crf": {"xy": 3}}, "task.crf.xy: has no effect because task.baselines is false"),
        ({"model": {"target_channels": 2}}, "task.model.target_channels: 2 does not fit"),
        ({"data": {"sources": []}}, "task.data.sources: is empty"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    config = tiny_scores_config(tmp_path)
    config["task"] |= {**changes, "data": {**config["task"]["data"], **changes.get("data", {})}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=part.replace("[", r"\[")):
        load(path)


def test_an_image_smaller_than_the_crop_is_refused(tmp_path: Path) -> None:
    assert "task.data.crop: 48 exceeds the size of objects-00000 (40 x 48 pixels)" in faults_of(
        tmp_path, "task.data.crop=48"
    )


def test_pictures_have_what_the_report_reads(tmp_path: Path) -> None:
    from train.tasks.task import Gallery

    class Kept(Gallery):
        def __init__(self) -> None:
            self.found: dict[str, Any] = {}

        def image(self, name: str, pixels: Tensor) -> None:
            assert pixels.min() >= 0
            assert pixels.max() <= 1

        def arrays(self, name: str, arrays: Any) -> None:
            self.found[name] = set(arrays)

    task, gallery = task_of(tmp_path), Kept()
    task.illustrate(task.build_model().eval(), gallery)
    labels = {"truth", "bilinear", "prediction"}
    assert gallery.found == {"objects-00100": {"image", "classes", "boxes", "box_classes"} | labels}
    assert json.dumps(task.card().usage)
