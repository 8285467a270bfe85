"""Cross-field checks for box-supervised segmentation: networks, images, losses, and settings that would be ignored."""

from __future__ import annotations

from collections.abc import Iterator

from modeling.segmentation.facts_bap import VOID, shape_faults
from train.config.setting import default_of
from train.config.tasks.box_segmentation import (
    PROCEDURAL_OBJECTS,
    RANDOM_WEIGHTS,
    BoxClassifierConfig,
    SegmenterConfig,
    SegmenterCRFConfig,
)
from train.config.tasks.values import Rule, Values


def _shape_goes_together(values: Values) -> Iterator[str]:
    """Apply the checks of the model configuration."""
    for fault in shape_faults(values.below("task.model.")):
        yield f"task.model.{fault.key}: {fault.message}"


def _initial_weights_are_used(values: Values) -> Iterator[str]:
    is_random = values["task.model.backbone_weights"] == RANDOM_WEIGHTS
    is_frozen = values["task.model.frozen_backbone"]
    if is_random and is_frozen:
        yield (
            "task.model.frozen_backbone: true keeps random weights as they are (task.model.backbone_weights is "
            f"{RANDOM_WEIGHTS}); write false, or give a file of weights"
        )
    if (is_random or is_frozen) and values["task.new_layers_lr_factor"] != 1:
        why = "task.model.backbone_weights is random" if is_random else "task.model.frozen_backbone is true"
        yield f"task.new_layers_lr_factor: has no effect because {why}: no pretrained layer is trained; write 1"


def _background_is_pooled(values: Values) -> Iterator[str]:
    key = "smallest_background"
    if values["task.model.pooling"] == "average" and values[f"task.model.{key}"] != default_of(
        BoxClassifierConfig, key
    ):
        yield f"task.model.{key}: has no effect because task.model.pooling is average; remove it"


def _there_are_images(values: Values) -> Iterator[str]:
    for key in ("sources", "validation_sources"):
        if not values[f"task.data.{key}"]:
            example = f"[{{path: {PROCEDURAL_OBJECTS}, stop: 200}}]"
            yield f"task.data.{key}: is empty; list at least one source, as in {example}"


def _classes_are_names(values: Values) -> Iterator[str]:
    classes = values["task.data.classes"]
    if classes is None:
        return
    if not 0 < len(classes) < VOID:
        yield f"task.data.classes: {len(classes)} classes; list 1 to {VOID - 1}, or write null for those of the folder"
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    if repeated:
        yield f"task.data.classes: {', '.join(repeated)} is there more than once; a class has one number"
    if "background" in classes:
        yield "task.data.classes: background is class 0 and comes by itself; leave it out"


def _sources_read_their_keys(values: Values) -> Iterator[str]:
    for section in ("sources", "validation_sources"):
        for number, source in enumerate(values[f"task.data.{section}"]):
            path = f"task.data.{section}.{number}"
            if source.path == PROCEDURAL_OBJECTS and source.list is not None:
                yield f"{path}.list: has no effect on {source.path}; remove it"
            if source.path != PROCEDURAL_OBJECTS and source.size is not None:
                yield f"{path}.size: has no effect on a folder, whose images have their own; remove it"


def _scales_are_a_range(values: Values) -> Iterator[str]:
    low, high = values["task.data.scale"]
    if low > high:
        yield f"task.data.scale: {low:g} exceeds {high:g}; write the smaller factor first: [{high:g}, {low:g}]"
    if (low, high) != (1.0, 1.0) and values["task.data.crop"] is None:
        yield "task.data.scale: has no effect because task.data.crop is null; write [1, 1], or set a crop"


def _labels_fit_the_loss(values: Values) -> Iterator[str]:
    labels, loss = values["task.data.labels"], values["task.loss"]
    if labels is None and loss != "truth":
        yield (
            f"task.data.labels: missing; task.loss {loss} learns from pseudo labels: write the folder that "
            "`python -m train.pseudo_labels RUN` made, or task.loss=truth for the sources' masks"
        )
    if labels is not None and loss == "truth":
        yield "task.data.labels: has no effect because task.loss is truth; remove it, or choose another loss"


def _loss_reads_its_settings(values: Values) -> Iterator[str]:
    loss = values["task.loss"]
    if loss != "noise_aware":
        for key in ("gamma", "disagreeing_weight"):
            if values[f"task.{key}"] is not None:
                yield f"task.{key}: has no effect because task.loss is {loss}; remove it"
        if values["task.detach_confidence"]:
            yield f"task.detach_confidence: has no effect because task.loss is {loss}; write false"
    elif values["task.model.classifier"] == "linear":
        yield (
            "task.model.classifier: the confidence of task.loss noise_aware is a ratio of cosines, which a linear "
            "classifier does not train; write cosine, or another loss"
        )


def _temperature_is_of_cosines(values: Values) -> Iterator[str]:
    temperature = values["task.model.temperature"]
    if values["task.model.classifier"] == "linear" and temperature != default_of(SegmenterConfig, "temperature"):
        yield "task.model.temperature: has no effect because task.model.classifier is linear; remove it"


def _crf_is_used(values: Values) -> Iterator[str]:
    if not values["task.test_crf"]:
        yield from changed_crf(values, because="task.test_crf is false")


def changed_crf(values: Values, *, because: str) -> Iterator[str]:
    """Yield a fault for each setting of a CRF that nothing uses."""
    for key in ("weight", "xy", "rgb", "smooth_weight", "smooth_xy", "steps"):
        if values[f"task.crf.{key}"] != default_of(SegmenterCRFConfig, key):
            yield f"task.crf.{key}: has no effect because {because}; remove it, or write true"


def _precision_is_fp32(values: Values) -> Iterator[str]:
    """Require fp32: cosines near 1 and the statistics of pretrained batch norms need more than 8 bits of mantissa."""
    if values["engine.precision"] == "bf16":
        yield (
            "engine.precision: bf16 is too coarse for this task, whose cosines are compared near 1; write fp32 or auto "
            "(which means fp32 here)"
        )
    if values["engine.gradient_dtype"] == "bf16":
        yield "engine.gradient_dtype: bf16 has no effect because this task runs in fp32; write fp32"


def _engine_options_exist(values: Values) -> Iterator[str]:
    if values["engine.activation_checkpointing"]:
        yield (
            "engine.activation_checkpointing: not supported by these networks; write false, and lower task.data.crop "
            "or micro_batch_size to save memory"
        )
    if values["engine.compile"]:
        yield "engine.compile: not supported by these networks, whose dropout draws on the CPU; write false"


def _decayed_weights_exist(values: Values) -> Iterator[str]:
    if values["optim.embedding_weight_decay"] is not None:
        yield "optim.embedding_weight_decay: has no effect because these networks have no embeddings; remove it"
    if values["optim.output_norm_weight_decay"]:
        yield "optim.output_norm_weight_decay: has no effect because these networks have no output norms; write 0"


def _measured_layers_exist(values: Values) -> Iterator[str]:
    if values["probes.layers_every"] is not None:
        yield "probes.layers_every: has no effect because these networks are no stack of layers; write null"


IMAGE_RULES: tuple[Rule, ...] = (  # whatever is learned from annotated images
    _there_are_images,
    _classes_are_names,
    _sources_read_their_keys,
)

_BOTH: tuple[Rule, ...] = (
    *IMAGE_RULES,
    _shape_goes_together,
    _initial_weights_are_used,
    _scales_are_a_range,
    _precision_is_fp32,
    _engine_options_exist,
    _decayed_weights_exist,
    _measured_layers_exist,
)

BOX_CLASSIFICATION_RULES: tuple[Rule, ...] = (*_BOTH, _background_is_pooled)
SEMANTIC_SEGMENTATION_RULES: tuple[Rule, ...] = (
    *_BOTH,
    _labels_fit_the_loss,
    _loss_reads_its_settings,
    _temperature_is_of_cosines,
    _crf_is_used,
)
