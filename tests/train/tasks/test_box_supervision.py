"""Both tasks of box-supervised segmentation: initial weights, frozen layers, dropout, losses, figures."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from modeling.segmentation.facts_bap import VOID
from modeling.segmentation.lite0_bap import Lite0, timm_names, wheel_names
from tests.ranks import Ranks
from tests.tiny_boxes import KINDS, tiny_boxes_config, tiny_boxes_file, tiny_images, tiny_weights
from tests.train.test_resume import losses, train
from train.config.errors import ConfigError
from train.config.load import load, load_tree
from train.data.summary import lines
from train.tasks import build_task
from train.tasks.segmentation.box_classification import BoxClassification
from train.tasks.segmentation.semantic_segmentation import SemanticSegmentation
from train.tasks.task import Task


def task_of(folder: Path, kind: str, *overrides: str) -> Task:
    return build_task(load(tiny_boxes_file(folder, kind), overrides))


def segmentation(folder: Path, *overrides: str) -> SemanticSegmentation:
    task = task_of(folder, "semantic_segmentation", *overrides)
    assert isinstance(task, SemanticSegmentation)
    return task


# ----------------------------------------------------------------------------------------------------- initial weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("names", "suffix"), [(wheel_names(), ".pth"), (timm_names(), ".safetensors")])
def test_pretrained_layers_come_from_the_file_and_new_ones_from_the_seed(
    tmp_path: Path, kind: str, names: dict[str, str], suffix: str
) -> None:
    path = tiny_weights(tmp_path, names, suffix)
    pretrained = task_of(tmp_path, kind, f"task.model.backbone_weights={path}").build_model()
    random = task_of(tmp_path, kind).build_model()
    torch.manual_seed(5)
    first = next(Lite0().parameters())
    assert torch.equal(pretrained.get_parameter("trunk.backbone.stem.convolution.weight"), first)
    assert torch.equal(pretrained.get_parameter("trunk.neck.mix.weight"), random.get_parameter("trunk.neck.mix.weight"))
    other = task_of(tmp_path, kind, "seed=1").build_model()
    assert not torch.equal(other.get_parameter("trunk.neck.mix.weight"), random.get_parameter("trunk.neck.mix.weight"))


def test_the_run_records_which_weights_it_started_from(tmp_path: Path) -> None:
    path = tiny_weights(tmp_path, wheel_names())
    task = task_of(tmp_path, "box_classification", f"task.model.backbone_weights={path}")
    facts = task.data_facts["initial_weights"]
    assert facts["file"] == "weights.pth"
    assert len(facts["sha256"]) == 64
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"initial weights of the backbone: {path}: weights.pth, SHA-256 {facts['sha256']}" in lines(task.data_facts)
    random = task_of(tmp_path, "box_classification")
    assert random.data_facts["initial_weights"] == {"given": "random"}
    assert "trained from random weights" in random.card().details[0]


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("nothing.pth", "does not exist"),
        (".", "is a folder"),
        ("empty.pth", "cannot be read as weights"),
        ("list.pth", "not tensors by name"),
        ("vgg.pth", "the weights are not those of EfficientNet-Lite0"),
    ],
)
def test_weights_that_cannot_be_used_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, part: str
) -> None:
    task = task_of(tmp_path, "box_classification", f"task.model.backbone_weights={given}")
    monkeypatch.chdir(tmp_path)
    Path("empty.pth").touch()
    torch.save([torch.ones(1)], "list.pth")
    torch.save({"features.0.weight": torch.ones(64, 3, 3, 3)}, "vgg.pth")
    with pytest.raises(ConfigError, match=part) as caught:
        task.check()
    assert caught.value.faults[0].startswith("task.model.backbone_weights: ")


def test_a_checkpoint_is_loaded_without_the_initial_weights(ranks: Ranks, tmp_path: Path) -> None:
    """Export and evaluation must not need a file that may be gone by then."""
    from train.evaluate.run import evaluate

    path = tiny_weights(tmp_path, wheel_names())
    settings = [f"task.model.backbone_weights={path}", "task.model.frozen_backbone=true", "steps=2"]
    ranks(1, train, str(tiny_boxes_file(tmp_path)), settings)
    path.unlink()
    step, figures = evaluate(tmp_path / "runs/tiny")
    (last,) = (row for row in rows_of(tmp_path) if "validation_loss" in row)
    assert step == 2
    assert figures["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_needs_no_training_image(ranks: Ranks, tmp_path: Path, kind: str) -> None:
    from tests.train.data.annotated.voc import write_voc
    from train.evaluate.run import evaluate

    folders = [write_voc(tmp_path / name, masks=("a", "b")) for name in ("training", "validation")]
    settings = [
        f"task.data.sources=[{{path: {folders[0]}, list: train}}]",
        f"task.data.validation_sources=[{{path: {folders[1]}, list: train}}]",
        "task.data.classes=[cat, dog]",
        "steps=2",
    ]
    if kind == "semantic_segmentation":
        settings += ["task.data.labels=null", "task.loss=truth"]
    ranks(1, train, str(tiny_boxes_file(tmp_path, kind)), settings)
    shutil.rmtree(folders[0])
    _, figures = evaluate(tmp_path / "runs/tiny")
    (last,) = (row for row in rows_of(tmp_path) if "validation_loss" in row)
    assert figures["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-6)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------- frozen layers, groups, dropout


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_layers_are_constants_of_the_same_name(tmp_path: Path, kind: str) -> None:
    path = tiny_weights(tmp_path, wheel_names())
    given = f"task.model.backbone_weights={path}"
    free = task_of(tmp_path, kind, given).build_model()
    frozen = task_of(tmp_path, kind, given, "task.model.frozen_backbone=true").build_model()
    assert free.state_dict().keys() == frozen.state_dict().keys()
    assert not [name for name, _ in frozen.named_parameters() if name.startswith("trunk.backbone.")]
    image = torch.rand(1, 3, 40, 48)
    assert torch.equal(free.eval().trunk(image), frozen.eval().trunk(image))  # type: ignore[operator]
    frozen.train()
    assert not any(module.training for module in frozen.trunk.backbone.modules())  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1, 3])
def test_frozen_layers_stay_to_the_last_bit(ranks: Ranks, tmp_path: Path, size: int) -> None:
    """A mean over three ranks of three equal numbers need not be that number."""
    path = tiny_weights(tmp_path, wheel_names())
    settings = [f"task.model.backbone_weights={path}", "task.model.frozen_backbone=true", "global_batch_size=3"]
    ranks(size, train, str(tiny_boxes_file(tmp_path)), [*settings, "steps=3", "micro_batch_size=1"])
    from train.checkpoint.checkpoint import CheckpointReader

    saved = CheckpointReader(tmp_path / "runs/tiny/checkpoints/step_000003").buffers()
    torch.manual_seed(5)
    given = torch.load(path)
    names = {f"trunk.backbone.{own}": theirs for own, theirs in wheel_names().items()}
    assert saved.keys() == names.keys()
    assert all(torch.equal(saved[own], given[theirs]) for own, theirs in names.items())


def test_groups_have_the_factors_of_their_kind(tmp_path: Path) -> None:
    path = tiny_weights(tmp_path, wheel_names())
    settings = ["task.new_layers_lr_factor=10", "task.bias_lr_factor=2", "optim.weight_decay=5e-4"]
    task = task_of(tmp_path, "semantic_segmentation", f"task.model.backbone_weights={path}", *settings)
    model = task.build_model()
    groups = {group.name: group for group in task.parameter_groups(model)}
    factors = {name: (group.lr_factor, group.weight_decay) for name, group in groups.items()}
    assert factors == {
        "pretrained_weight": (1, 5e-4),
        "pretrained_norm": (1, 0),
        "pretrained_bias": (2, 0),
        "new_weight": (10, 5e-4),
        "new_bias": (20, 0),
    }
    grouped = [name for group in groups.values() for name in group.parameters]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    assert "classifier.weight" in groups["new_weight"].parameters


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_and_variations_belong_to_samples(ranks: Ranks, tmp_path: Path, kind: str) -> None:
    """With the statistics of pretrained weights nothing depends on who shares a batch, dropout included."""
    path = tiny_weights(tmp_path, wheel_names())
    config, settings = str(tiny_boxes_file(tmp_path, kind)), [f"task.model.backbone_weights={path}", "steps=4"]
    ranks(1, train, config, [*settings, "micro_batch_size=4", "name=alone"])
    ranks(2, train, config, [*settings, "micro_batch_size=1"])
    expected = losses(tmp_path, "alone")
    for step, (loss, norm, samples) in losses(tmp_path).items():
        assert loss == pytest.approx(expected[step][0], rel=1e-5)
        assert norm == pytest.approx(expected[step][1], rel=1e-5)
        assert samples == expected[step][2]


def test_dropout_changes_with_seed_step_and_sample(tmp_path: Path) -> None:
    task = task_of(tmp_path, "box_classification")
    keys = [task.batch(np.array([i]), split="training", step=step)["key"].item() for i in (0, 1) for step in (1, 2)]
    keys += [
        task_of(tmp_path, "box_classification", "task.data.seed=1")
        .batch(np.array([0]), split="training", step=1)["key"]
        .item()
    ]
    assert len(set(keys)) == len(keys)


# ------------------------------------------------------------------------------------------------- weights and losses


def test_the_weight_of_a_batch_of_boxes_is_what_is_classified(tmp_path: Path) -> None:
    task = task_of(tmp_path, "box_classification")
    assert isinstance(task, BoxClassification)
    batch = task.batch(np.arange(4), split="training", step=1)
    output = task.step(task.build_model(), batch)
    assert float(output.weight) == task.weight(batch)
    boxes = int((batch["classes"] > 0).sum())
    assert 4 * boxes < task.weight(batch) <= 4 * boxes + 4 * 16


def test_an_image_without_boxes_has_only_background(tmp_path: Path) -> None:
    task = task_of(tmp_path, "box_classification")
    assert isinstance(task, BoxClassification)
    batch = task.batch(np.array([0]), split="training", step=1)
    batch["classes"] = torch.full_like(batch["classes"], -1)
    output = task.step(task.build_model(), batch)
    assert float(output.weight) == task.weight(batch) == 16
    assert torch.isfinite(output.loss_sum)
    assert output.metrics["box_accuracy"][1] == 0


def test_a_box_over_the_whole_image_leaves_no_background(tmp_path: Path) -> None:
    task = task_of(tmp_path, "box_classification")
    assert isinstance(task, BoxClassification)
    batch = task.batch(np.array([0]), split="training", step=1)
    batch["boxes"], batch["classes"] = torch.tensor([[[0, 0, 32, 32]]]), torch.tensor([[2]])
    output = task.step(task.build_model(), batch)
    assert float(output.weight) == task.weight(batch) == 4
    output.loss_sum.backward()
    assert torch.isfinite(output.loss_sum)


def test_each_loss_learns_its_labels(tmp_path: Path) -> None:
    """Of the labels in a batch, crf and retrieved take one alone, truth the masks of the sources."""
    tasks = {
        loss: segmentation(tmp_path, f"task.loss={loss}", *(["task.data.labels=null"] if loss == "truth" else []))
        for loss in ("noise_aware", "agreeing", "crf", "retrieved", "truth")
    }
    found = {loss: task.batch(np.array([1]), split="training", step=1)["labels"][0] for loss, task in tasks.items()}
    crf, retrieved = found["noise_aware"]
    assert not torch.equal(crf, retrieved)
    assert torch.equal(found["agreeing"], found["noise_aware"])
    assert all(torch.equal(each, crf) for each in found["crf"])
    assert all(torch.equal(each, retrieved) for each in found["retrieved"])
    assert not torch.equal(found["truth"][0], crf)
    assert torch.equal(*found["truth"])


def test_agreeing_is_the_cross_entropy_where_labels_agree(tmp_path: Path) -> None:
    task = segmentation(tmp_path, "task.loss=agreeing", "task.model.dropout=0")
    batch = task.batch(np.arange(2), split="training", step=1)
    model = task.build_model()
    output = task.step(model, batch)
    logits = F.interpolate(model(batch["image"] / 255).logits, size=(32, 32), mode="bilinear")
    crf, retrieved = batch["labels"].long().unbind(1)
    agreed = torch.where(crf == retrieved, crf, VOID)
    expected = [F.cross_entropy(logits[i : i + 1], agreed[i : i + 1], ignore_index=VOID) for i in range(2)]
    torch.testing.assert_close(output.loss_sum, sum(expected, torch.zeros(())))
    assert float(output.weight) == 2
    share = ((crf != retrieved) & (crf != VOID)).sum((1, 2)) / (crf != VOID).sum((1, 2))
    torch.testing.assert_close(output.metrics["disagreement"][0], share.sum())


# -------------------------------------------------------------------------------------------------------- the judgment


def test_the_iou_is_that_of_the_whole_split(tmp_path: Path) -> None:
    """Against a confusion matrix, whatever the batches; classes that never occur count nowhere."""
    task = segmentation(tmp_path)
    model = task.build_model().eval()
    sums: dict[str, list[float]] = {}
    confusion = np.zeros((5, 5), np.int64)
    for chunk in (np.array([0, 1]), np.array([2])):
        for name, (value, weight) in task.evaluate(model, task.batch(chunk, split="validation", step=0)).items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float(value)
            total[1] += float(weight)
    for index in range(3):
        sample = task.validation.read(index)
        assert sample.mask is not None
        found = np.asarray(model.segment(sample.image).mask)
        np.add.at(confusion, (sample.mask, found), 1)
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    means = {name: value / weight if weight else float("nan") for name, (value, weight) in sums.items()}
    report = task.validation_report(means)
    names = ["background", "disk", "triangle", "diamond", "cross"]
    ious = {name: right[i] / union[i] for i, name in enumerate(names) if union[i]}
    for name, iou in ious.items():
        assert report[f"validation_iou_{name}"] == pytest.approx(iou)
    assert report["validation_miou"] == pytest.approx(np.mean(list(ious.values())))
    assert report["validation_pixel_accuracy"] == pytest.approx(right.sum() / confusion.sum())


def test_flips_and_the_crf_change_what_is_judged(tmp_path: Path) -> None:
    plain = segmentation(tmp_path)
    model, batch = plain.build_model().eval(), plain.batch(np.arange(2), split="validation", step=0)
    figures = {
        name: float(segmentation(tmp_path, *settings).evaluate(model, batch)["loss"][0])
        for name, settings in {
            "plain": [],
            "flips": ["task.test_flips=true"],
            "crf": ["task.test_crf=true", "task.crf.xy=10"],
        }.items()
    }
    assert len(set(figures.values())) == 3


# --------------------------------------------------------------------------------------------------- what is refused


def faults_of(folder: Path, kind: str, **changes: Any) -> str:
    tree = tiny_boxes_config(folder, kind)
    for path, value in changes.items():
        node: Any = tree
        *parents, last = path.split("__")
        for key in parents:
            node = node[key]
        node[last] = value
    with pytest.raises(ConfigError) as caught:
        load_tree(yaml.safe_load(yaml.safe_dump(tree)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "part"),
    [
        ("box_classification", {"task__model__frozen_backbone": True}, "keeps random weights as they are"),
        ("box_classification", {"task__new_layers_lr_factor": 10}, "no pretrained layer is trained"),
        ("box_classification", {"task__model__features": 8, "task__model__backbone": "vgg16"}, "makes 1024"),
        (
            "box_classification",
            {"task__model__pooling": "average", "task__model__smallest_background": 0.5},
            "task.model.smallest_background: has no effect",
        ),
        ("box_classification", {"task__data__sources": []}, "task.data.sources: is empty"),
        ("box_classification", {"task__data__classes": ["a", "b", "a"]}, "a is there more than once"),
        ("box_classification", {"task__data__classes": ["background"]}, "comes by itself"),
        ("box_classification", {"task__data__classes": []}, "0 classes"),
        ("box_classification", {"task__data__scale": [2, 1]}, "write the smaller factor first"),
        ("box_classification", {"task__data__crop": None}, "task.data.scale: has no effect"),
        ("box_classification", {"engine__precision": "bf16"}, "too coarse"),
        ("box_classification", {"engine__compile": True}, "not supported by these networks"),
        ("box_classification", {"engine__activation_checkpointing": True}, "not supported by these networks"),
        ("box_classification", {"optim__embedding_weight_decay": 0.1}, "no embeddings"),
        ("semantic_segmentation", {"task__data__labels": None}, "task.data.labels: missing"),
        ("semantic_segmentation", {"task__loss": "truth"}, "task.data.labels: has no effect"),
        ("semantic_segmentation", {"task__loss": "crf", "task__gamma": 3}, "task.gamma: has no effect"),
        ("semantic_segmentation", {"task__loss": "agreeing", "task__disagreeing_weight": 1}, "has no effect"),
        ("semantic_segmentation", {"task__model__classifier": "linear"}, "write cosine, or another loss"),
        (
            "semantic_segmentation",
            {"task__loss": "crf", "task__model__classifier": "linear", "task__model__temperature": 3},
            "task.model.temperature: has no effect",
        ),
        ("semantic_segmentation", {"task__crf": {"xy": 3}}, "task.crf.xy: has no effect"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], part: str
) -> None:
    assert part in faults_of(tmp_path, kind, **changes)


def test_images_of_other_classes_or_without_masks_are_refused(tmp_path: Path) -> None:
    from tests.train.data.annotated.voc import write_voc

    voc = write_voc(tmp_path / "VOC", masks=("a",))
    source = f"[{{path: {voc}, list: train}}]"
    with pytest.raises(ConfigError, match=r"the classes are cat, dog, in training disk"):
        task_of(tmp_path, "box_classification", f"task.data.validation_sources={source}").check()
    of_voc = [f"task.data.sources={source}", f"task.data.validation_sources={source}", "task.data.labels=null"]
    with pytest.raises(ConfigError, match="b has no mask in SegmentationClass, which validation needs"):
        segmentation(tmp_path, *of_voc, "task.loss=truth").check()
    boxes = [setting for setting in of_voc if "labels" not in setting]
    task_of(tmp_path, "box_classification", *boxes).check()


def test_pictures_have_what_the_report_reads(tmp_path: Path, ranks: Ranks) -> None:
    ranks(1, train, str(tiny_boxes_file(tmp_path / "boxes")), ["steps=1"])
    ranks(1, train, str(tiny_boxes_file(tmp_path / "masks", "semantic_segmentation")), ["steps=1"])
    found = {}
    for name in ("boxes", "masks"):
        for path in sorted((tmp_path / name / "runs/tiny/images/step_000001").glob("*.npz")):
            with np.load(path) as arrays:
                found[path.stem] = set(arrays)
                assert all(
                    arrays[key].shape[:2] == arrays["image"].shape[:2]
                    for key in arrays
                    if key not in ("classes", "boxes", "box_classes")
                )
    always = {"image", "classes", "boxes", "box_classes", "truth"}
    labels = {"crf", "retrieved"}
    assert found == {
        "labels-objects-00100": always | labels | {"attention", "activation"},
        "objects-00100": always | {"prediction"},
        f"training-{tiny_images().name(0)}": always | labels | {"confidence"},
    }
