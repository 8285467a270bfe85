"""Closed forms for a run of box-supervised segmentation: counts, operations, and the tensors of a pass.

Sizes are in fp32 elements and were derived from the networks' operations; tests/launch/plan/test_segmentation.py
compares them with what torch keeps and with the peak of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from launch.plan.case import FLOAT, Case
from launch.plan.image_filter import ImageSize
from launch.plan.segmentation_head import BoxHead, SegmentationHead
from modeling.segmentation.facts_bap import BACKGROUND, NetworkShape
from modeling.segmentation.facts_counts_bap import (
    Counts,
    Operation,
    Weights,
    count_parameters,
    is_trained,
    kept_elements,
    training_flops,
    trunk_operations,
)
from train.config.errors import ConfigError
from train.config.tasks.box_segmentation import (
    NUM_PROCEDURAL_CLASSES,
    PROCEDURAL_OBJECTS,
    PROCEDURAL_SIZE,
    RANDOM_WEIGHTS,
    AnnotatedSourceConfig,
    BoxClassificationConfig,
    SemanticSegmentationConfig,
)
from train.config.tasks.score_upsampling import ScoreUpsamplingConfig

AnnotatedTask = BoxClassificationConfig | SemanticSegmentationConfig | ScoreUpsamplingConfig

ASSUMED_CLASSES = 20  # of objects in a folder that is not opened: those of PASCAL VOC
ASSUMED_BOXES = 10  # of an image, with padding

# Operations that are not views, counted with a dispatch mode: of each operation of the trunk, of the drawing of an
# image's dropout masks, and of what follows the features.
_FORWARD, _FORWARD_AND_BACKWARD, _DROPOUT = 1.0, 2.9, 4
_AFTER_FEATURES = {"box_classification": 193, "semantic_segmentation": 135}
_DETACHED = 33  # fewer, without gradients of the confidence


@dataclass(frozen=True)
class SegmentationWorkload:
    """A network that learns from boxes or masks, and its images."""

    task: BoxClassificationConfig | SemanticSegmentationConfig
    sample: str = "image"
    mfu: float = 0.1  # of the bf16 peak, a guess: convolutions in fp32 with TF32 products
    can_recompute: bool = False
    tokens: int | None = None
    first_gradient: int = 0
    exported_itemsize: int = FLOAT

    @cached_property
    def model(self) -> NetworkShape:
        """Shape of the network without its head."""
        return NetworkShape(**{name: getattr(self.task.model, name) for name in NetworkShape.__dataclass_fields__})

    @cached_property
    def size(self) -> ImageSize:
        """Size of the training images.

        Raises:
            ConfigError: Only the images themselves know it.
        """
        return image_size(self.task)

    @cached_property
    def num_objects(self) -> int:
        """Number of object classes, without the background; assumed where only the data know it."""
        return num_objects(self.task)

    @cached_property
    def counts(self) -> Counts:
        """Its parameters by origin and kind."""
        return count_parameters(self.model, num_classes=self.num_objects + 1, frozen_backbone=self._frozen)

    @cached_property
    def head(self) -> BoxHead | SegmentationHead:
        """What follows the features."""
        if isinstance(self.task, BoxClassificationConfig):
            return BoxHead(self.task, num_classes=self.num_objects + 1, boxes=ASSUMED_BOXES)
        return SegmentationHead(self.task, num_classes=self.num_objects + 1)

    @property
    def samples_in_words(self) -> str:
        """What the samples are."""
        return f"images of {self.size.height} x {self.size.width} pixels ({self.size.source})"

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.counts.trained

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of parameters in each of the optimizer's groups.

        Those that start from random weights are together. Which of VGG-16's dense layers do depends on the file; they
        are counted as new.
        """
        pretrained, new = self.counts.pretrained, self.counts.new
        if self.task.model.backbone_weights == RANDOM_WEIGHTS:
            pretrained, new = Weights(), Weights(*map(sum, zip(pretrained, new, strict=True)))
        sizes = (size for each in (pretrained, new) for size in (each.kernel, each.scale, each.bias))
        return tuple(size for size in sizes if size)

    @property
    def buffers(self) -> int:
        """Elements that are saved with the weights but not trained: statistics, weights of a frozen backbone."""
        return self.counts.frozen + self.counts.running

    @property
    def flops_per_sample(self) -> float:
        """Operations of a training step per sample."""
        height, width = self._sides
        return float(training_flops(self.model, frozen_backbone=self._frozen, height=height, width=width))

    def launches(self, case: Case) -> int:
        """Return the kernels of a pass, which bound the time of a small one."""
        in_trunk = sum(_FORWARD_AND_BACKWARD if gradient else _FORWARD for _, _, gradient in self._with_kept())
        dropout = _DROPOUT * case.micro_batch_size * (self.task.model.dropout > 0)
        return round(in_trunk + dropout + _AFTER_FEATURES[self.task.kind] - _DETACHED * self._detached)

    def count_lines(self) -> Iterator[str]:
        """Yield parameters by part and operations."""
        counts = self.counts
        if counts.frozen:
            yield f"{'frozen backbone':30}{counts.frozen:>18,}  (constants: no gradients, no optimizer state)"
        else:
            yield f"{'backbone':30}{counts.pretrained.total:>18,}"
        yield f"{'new layers':30}{counts.new.total:>18,}"
        yield f"{'parameters':30}{counts.trained:>18,}"
        yield f"{'training FLOPs per image':30}{self.flops_per_sample:>18,.0f}  (convolutions)"
        yield f"{'classes':30}{self.num_objects + 1:>18,}  ({self._classes_in_words()})"
        if isinstance(self.task, BoxClassificationConfig):
            yield f"{'boxes per image':30}{ASSUMED_BOXES:>18,}  (assumed)"

    def remarks(self) -> Iterator[str]:
        """Yield nothing: there is nothing to choose."""
        return iter(())

    def _classes_in_words(self) -> str:
        data = self.task.data
        if data.classes is None and not _is_drawn(data.sources[0]):
            return "assumed: task.data.classes is null, and the folder is not opened"
        return f"{BACKGROUND} included"

    # ---------------------------------------------------------------------------------------- activations and the loss

    def activation_bytes(self, case: Case) -> float:
        """Return the bytes that the forward pass saves."""
        return FLOAT * (case.micro_batch_size * self._kept(case) + self.head.constant(*self._sides))

    def loss_bytes(self, case: Case) -> float:
        """Return the bytes of the forward pass at its peak, beyond all that it saves: at the loss, or before it."""
        in_trunk = self._forward_peak() - self._kept(case)
        return FLOAT * case.micro_batch_size * max(0.0, in_trunk, self.head.forward_elements(*self._sides))

    def backward_bytes(self, case: Case) -> float:
        """Return the bytes of the backward pass at its peak, less what it has freed by then."""
        images = case.micro_batch_size
        at_head = images * self.head.backward_elements(*self._sides, several=images > 1)
        in_trunk = self._backward_peak(images) - self.activation_bytes(case) / FLOAT
        return FLOAT * max(at_head, in_trunk)

    def _kept(self, case: Case) -> float:
        """Return what the forward pass saves per image."""
        return self._kept_in_trunk + self.head.kept_elements(*self._sides, several=case.micro_batch_size > 1)

    @property
    def _sides(self) -> tuple[int, int]:
        return self.size.height, self.size.width

    @cached_property
    def _kept_in_trunk(self) -> float:
        return sum(added for added, _ in kept_elements(self._operations, frozen_backbone=self._frozen))

    @cached_property
    def _operations(self) -> list[Operation]:
        return list(trunk_operations(self.model, height=self.size.height, width=self.size.width))

    @property
    def _frozen(self) -> bool:
        return self.task.model.frozen_backbone

    @property
    def _detached(self) -> bool:
        return isinstance(self.task, SemanticSegmentationConfig) and self.task.detach_confidence

    def _forward_peak(self) -> float:
        """Return the most elements per image that the trunk's forward pass holds at a time.

        Besides what it keeps, these are the image before and after scaling, an operation's output and, where they are
        not kept anyway, its input and what else is in use.
        """
        images = 2 * 3 * self.size.height * self.size.width
        return images + max(
            kept + each.returns + (0 if gradient else each.reads + each.alive)
            for each, kept, gradient in self._with_kept()
        )

    def _backward_peak(self, micro_batch_size: int) -> float:
        """Return the most elements that the trunk's backward pass holds at a time.

        These are what the operations up to one keep, the gradients of its output, of its input if anything before is
        trained, and of its weights.
        """
        highest, passes_on = 0.0, False
        for each, kept, gradient in self._with_kept():
            if gradient:
                of_weights = each.weights.total * is_trained(each, frozen_backbone=self._frozen)
                of_tensors = each.returns + each.reads * passes_on
                highest = max(highest, micro_batch_size * (kept + of_tensors) + of_weights)
            passes_on = gradient
        return highest

    def _with_kept(self) -> Iterator[tuple[Operation, float, bool]]:
        """Yield each operation, what it and all before it keep, and whether it has a backward pass."""
        kept = 0.0
        each_kept = kept_elements(self._operations, frozen_backbone=self._frozen)
        for operation, (added, gradient) in zip(self._operations, each_kept, strict=True):
            kept += added
            yield operation, kept, gradient


def num_objects(task: AnnotatedTask) -> int:
    """Return the number of object classes, without the background; assumed where only the data know it."""
    if task.data.classes is not None:
        return len(task.data.classes)
    return NUM_PROCEDURAL_CLASSES if _is_drawn(task.data.sources[0]) else ASSUMED_CLASSES


def image_size(task: AnnotatedTask) -> ImageSize:
    """Return the size of the training images: the crop, or that of the largest source of drawn images.

    Raises:
        ConfigError: There is no crop, and a source is a folder, whose images the plan does not open.
    """
    if task.data.crop is not None:
        return ImageSize(task.data.crop, task.data.crop, "task.data.crop")
    if not all(_is_drawn(source) for source in task.data.sources):
        raise ConfigError(
            [
                "task.data.crop: null, so the size of a step's images is only known from the files, which launch plan "
                "does not open; plan with a crop of about their size, for example task.data.crop=512"
            ]
        )
    sizes = [ImageSize(*(source.size or PROCEDURAL_SIZE), "procedural") for source in task.data.sources]
    return max(sizes, key=lambda size: size.height * size.width)


def _is_drawn(source: AnnotatedSourceConfig) -> bool:
    return source.path == PROCEDURAL_OBJECTS
