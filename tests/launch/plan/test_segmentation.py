"""Memory and operations that `plan` predicts for box-supervised segmentation against those of the built networks."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from launch.__main__ import main
from launch.plan.case import case_of
from launch.plan.memory import memory
from launch.plan.segmentation import ASSUMED_BOXES, ASSUMED_CLASSES, SegmentationWorkload
from launch.plan.workload import workload_of
from modeling.segmentation.facts_bap import BACKBONE_CHANNELS, STRIDE
from modeling.segmentation.lite0_bap import Lite0, wheel_names
from modeling.segmentation.vgg16_bap import VGG16
from tests.launch.plan.live_memory import LiveMemory
from tests.launch.plan.operations import OperationCounter
from train.__main__ import describe
from train.config.load import load
from train.config.tasks.box_segmentation import NUM_PROCEDURAL_CLASSES, PROCEDURAL_SIZE
from train.data.drawn.objects import CLASSES
from train.tasks import build_task
from train.tasks.segmentation.box_classification import BoxClassification
from train.tasks.segmentation.semantic_segmentation import SemanticSegmentation
from train.tasks.task import Batch

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs/box_segmentation").glob("*.yaml"))
QUICKSTART = str(ROOT / "configs/box_segmentation/quickstart-boxes.yaml")
KINDS = ("box_classification", "semantic_segmentation")
NETWORKS = [(backbone, frozen) for backbone in ("vgg16", "lite0") for frozen in (False, True)]
NOISY = ["task.loss=noise_aware", "task.data.labels=nowhere"]
LINEAR = "task.model.classifier=linear"
HEADS: list[list[str]] = [
    ["task.kind=box_classification"],
    ["task.kind=box_classification", "task.model.pooling=average", "task.model.grid=2", "task.model.roi=3"],
    ["task.kind=box_classification", "task.model.dropout=0"],
    ["task.kind=semantic_segmentation", "task.loss=truth"],
    ["task.kind=semantic_segmentation", "task.loss=truth", "task.model.dropout=0"],
    ["task.kind=semantic_segmentation", LINEAR, "task.loss=truth"],
    ["task.kind=semantic_segmentation", "task.detach_confidence=true", *NOISY],
]


def words(backbone: str, frozen: bool, *more: str, crop: int = 64, classes: int = 5) -> list[str]:
    """Return overrides for a folder that need not exist, as its classes and the crop are given."""
    names = ", ".join(f"class{number}" for number in range(1, classes))
    data = [f"task.data.crop={crop}", f"task.data.classes=[{names}]", "task.data.sources=[nowhere]"]
    weights = "weights.pth" if frozen else "random"
    network = [f"backbone={backbone}", "features=null", f"frozen_backbone={str(frozen).lower()}"]
    return [*data, *(f"task.model.{word}" for word in (*network, f"backbone_weights={weights}")), *more]


class Pass:
    """A pass of a task over images without content; on the meta device, for its sizes only."""

    def __init__(self, overrides: list[str], *, images: int, device: str) -> None:
        config = load(QUICKSTART, overrides)
        work, task = workload_of(config), build_task(config)
        assert isinstance(work, SegmentationWorkload)
        assert isinstance(task, BoxClassification | SemanticSegmentation)
        self.work, self.case = work, case_of(config, gpus=1, micro_batch_size=images)
        self.task = task
        with torch.device(device):
            self.model = task.outline()
            self.batch = batch_of(work, images) | {"key": torch.arange(images, device="cpu")}
        if isinstance(self.model.trunk.backbone, Lite0):  # statistics that are learned keep two more numbers a channel
            self.model.trunk.backbone.learns_statistics = False
        self.model.train()
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def loss(self) -> Tensor:
        return self.task.step(self.model, self.batch).loss_sum

    @property
    def planned_peak(self) -> float:
        work, case = self.work, self.case
        return work.activation_bytes(case) + max(work.loss_bytes(case), work.backward_bytes(case))


def batch_of(work: SegmentationWorkload, images: int) -> Batch:
    height, width = work.size[:2]
    pixels = {"image": torch.zeros(images, 3, height, width, dtype=torch.uint8)}
    if work.task.kind == "semantic_segmentation":
        return pixels | {"labels": torch.zeros(images, 2, height, width, dtype=torch.uint8)}
    boxes = torch.tensor([8, 8, 40, 40]).expand(images, ASSUMED_BOXES, 4).contiguous()
    return pixels | {"boxes": boxes, "classes": torch.ones(images, ASSUMED_BOXES, dtype=torch.int64)}


class Kept:
    """A saved tensor, as long as the graph needs it; detached, as an output that is saved would keep its own graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.storage = tensor.untyped_storage()


def kept_bytes(one_pass: Pass) -> int:
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> Kept:
        kept = Kept(tensor.detach())
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda _: torch.empty(0)):
        loss = one_pass.loss()
    sizes = {kept.storage.data_ptr(): kept.storage.nbytes() for kept in alive}
    del loss
    tensors = [*one_pass.model.parameters(), *one_pass.model.buffers(), *one_pass.batch.values()]
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return sum(size for place, size in sizes.items() if place not in own)


# ------------------------------------------------------------------------------------------- shapes, counts, operations


def test_backbones_return_the_channels_and_the_stride_that_their_facts_state() -> None:
    images = torch.zeros(1, 3, 40, 56, device="meta")
    with torch.device("meta"):
        networks = {"vgg16": VGG16(dilation=1), "lite0": Lite0()}
    for name, network in networks.items():
        assert network(images).shape == (1, BACKBONE_CHANNELS[name], 40 // STRIDE, 56 // STRIDE)


@pytest.mark.parametrize(("backbone", "frozen"), NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_buffers_are_those_of_the_network(kind: str, backbone: str, frozen: bool) -> None:
    one_pass = Pass(words(backbone, frozen, f"task.kind={kind}", *truth(kind)), images=1, device="meta")
    counts, model = one_pass.work.counts, one_pass.model
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert one_pass.work.parameters == trained
    assert one_pass.work.buffers == sum(buffer.numel() for buffer in model.buffers())
    pretrained = sum(parameter.numel() for parameter in model.trunk.pretrained.parameters())
    assert (counts.pretrained.total, counts.new.total) == (pretrained, trained - pretrained)
    if not frozen:
        groups = one_pass.task.parameter_groups(model)
        assert sorted(one_pass.work.groups) == sorted(size_of(group.parameters) for group in groups)


def test_groups_are_those_of_a_network_with_pretrained_weights(tmp_path: Path) -> None:
    names, file = wheel_names(), tmp_path / "lite0.safetensors"
    save_file({names[own]: tensor for own, tensor in Lite0().state_dict().items()}, file)
    config = load(QUICKSTART, [f"task.model.backbone_weights={file}"])
    task, work = build_task(config), workload_of(config)
    groups = task.parameter_groups(task.build_model())
    assert len(groups) == 5
    assert sorted(work.groups) == sorted(size_of(group.parameters) for group in groups)


def size_of(parameters: dict[str, torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def truth(kind: str) -> list[str]:
    return ["task.loss=truth"] if kind == "semantic_segmentation" else []


def convolution_backward(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Count a convolution's backward pass by the gradients that it returns; torch's own formula ignores groups."""
    gradient, _, weight = args[:3]
    wanted = args[-1]
    return 2 * gradient[0] * gradient[2] * gradient[3] * torch.Size(weight).numel() * (wanted[0] + wanted[1])


@pytest.mark.parametrize(("backbone", "frozen"), NETWORKS)
def test_operations_are_those_that_torch_counts(
    backbone: str, frozen: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = words(backbone, frozen, "task.kind=box_classification", crop=70)
    one_pass = Pass(overrides, images=2, device="meta")
    images = torch.zeros(2, 3, 70, 70, device="meta")
    mapping = {torch.ops.aten.convolution_backward: convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        one_pass.model.trunk(images).sum().backward()
    counted = counter.get_total_flops() // 2
    assert one_pass.work.flops_per_sample == one_pass.task.cost(one_pass.model).flops == counted
    assert describe(load(QUICKSTART, overrides)) == 0
    assert f"{counted:,}  (convolutions, 70 x 70 pixels)" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- the memory


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("backbone", ["vgg16", "lite0"])
def test_a_pass_behind_a_frozen_backbone_keeps_exactly_what_is_planned(
    backbone: str, head: list[str], images: int
) -> None:
    one_pass = Pass(words(backbone, True, *head, crop=72), images=images, device="cpu")
    assert kept_bytes(one_pass) == one_pass.work.activation_bytes(one_pass.case)


@pytest.mark.parametrize(("crop", "images"), [(64, 2), (50, 1)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", ["vgg16", "lite0"])
def test_a_pass_keeps_exactly_what_is_planned(backbone: str, kind: str, crop: int, images: int) -> None:
    overrides = words(backbone, False, f"task.kind={kind}", *truth(kind), crop=crop)
    one_pass = Pass(overrides, images=images, device="cpu")
    assert kept_bytes(one_pass) == one_pass.work.activation_bytes(one_pass.case)


@pytest.mark.parametrize(("crop", "classes", "images"), [(321, 21, 2), (96, 5, 8)])
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize(("backbone", "frozen"), NETWORKS)
def test_the_peak_of_a_pass_is_met(
    backbone: str, frozen: bool, head: list[str], crop: int, classes: int, images: int
) -> None:
    """Measured, planned / real peak: 0.999 to 1.006. What is missing is what batch norms save on this device only."""
    if backbone == "lite0" and LINEAR in head:
        pytest.skip("convolutions on the meta device do not keep channels last; the test below has this case")
    one_pass = Pass(words(backbone, frozen, *head, crop=crop, classes=classes), images=images, device="meta")
    assert 0.99 < one_pass.planned_peak / measured_peak(one_pass) < 1.01


@pytest.mark.parametrize("head", [HEADS[0], HEADS[3], HEADS[5]], ids=str)
@pytest.mark.parametrize("backbone", ["vgg16", "lite0"])
def test_the_peak_of_a_pass_on_the_cpu_is_met(backbone: str, head: list[str]) -> None:
    """Without the workspace of convolutions, which on the CPU can exceed all else. Measured: 0.999 to 1.001."""
    one_pass = Pass(words(backbone, True, *head, crop=96), images=2, device="cpu")
    assert 0.99 < one_pass.planned_peak / measured_peak(one_pass) < 1.01


def measured_peak(one_pass: Pass) -> int:
    with LiveMemory() as memory:
        one_pass.loss().backward()
    return memory.peak


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize(("backbone", "frozen"), NETWORKS)
def test_the_kernels_of_a_pass_are_about_as_many_as_planned(backbone: str, frozen: bool, head: list[str]) -> None:
    """Measured, planned / counted: 0.97 to 1.05 with 1 to 8 images."""
    one_pass = Pass(words(backbone, frozen, *head), images=2, device="meta")
    with OperationCounter() as counter:
        one_pass.loss().backward()
    assert one_pass.work.launches(one_pass.case) == pytest.approx(counter.operations, rel=0.1)


# ------------------------------------------------------------------------------------------------------ what is printed


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("backbone", "frozen"), NETWORKS)
@pytest.mark.parametrize("stage", [0, 3])
def test_every_configuration_is_planned(
    path: Path, backbone: str, frozen: bool, stage: int, capsys: pytest.CaptureFixture[str]
) -> None:
    network = [f"task.model.backbone={backbone}", "task.model.features=null", f"engine.zero_stage={stage}"]
    network += ["task.model.frozen_backbone=true", "task.model.backbone_weights=weights.pth"] if frozen else []
    network += ["task.new_layers_lr_factor=1"] if frozen else ["task.model.frozen_backbone=false"]
    assert main(["plan", str(path), *network, "--gpus", "2"]) == 0
    printed = capsys.readouterr().out
    for part in ("training FLOPs per image", "images/s", "Recommended: ", "Accuracy of the memory: what a pass keeps"):
        assert part in printed, part
    assert f"As configured (stage {stage}" in printed
    assert ("frozen backbone" in printed) == frozen
    assert max(len(line) for line in printed.splitlines()) <= 120


def test_a_frozen_backbone_has_weights_but_neither_gradients_nor_optimizer_state() -> None:
    configs = [load(QUICKSTART, words("vgg16", frozen, "task.kind=box_classification")) for frozen in (False, True)]
    before, after = (memory(config, case_of(config, gpus=1, micro_batch_size=1)) for config in configs)
    constants = 4 * workload_of(configs[1]).buffers
    assert constants > 4 * 14_000_000
    assert after.weights == before.weights
    assert before.gradients - after.gradients == constants
    assert before.optimizer - after.optimizer == 3 * constants  # two moments, and the partition's master weights
    assert after.activations < before.activations / 2


def test_sizes_and_classes_are_those_of_the_data_or_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(CLASSES) == NUM_PROCEDURAL_CLASSES
    sources = "task.data.sources=[{path: procedural-objects, stop: 4}]"
    drawn = workload_of(load(QUICKSTART, ["task.data.crop=null", sources]))
    assert isinstance(drawn, SegmentationWorkload)
    assert (drawn.size[:2], drawn.num_objects) == (PROCEDURAL_SIZE, NUM_PROCEDURAL_CLASSES)
    folder = ["task.data.sources=[somewhere]"]
    assert main(["plan", QUICKSTART, *folder]) == 0
    printed = capsys.readouterr().out
    assert f"{ASSUMED_CLASSES + 1}  (assumed: task.data.classes is null" in printed
    assert max(len(line) for line in printed.splitlines()) <= 120
    assert f"{ASSUMED_BOXES}  (assumed)" in printed
    assert main(["plan", QUICKSTART, *folder, "task.data.crop=null"]) == 2
    assert "task.data.crop: null, so the size" in capsys.readouterr().err
