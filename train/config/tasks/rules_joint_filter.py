"""Cross-field checks for joint-filter configs: network, image pairs, and settings that would be ignored."""

from __future__ import annotations

from collections.abc import Iterator

from modeling.joint_filter.facts_dkn import shape_faults
from train.config.tasks.rules_labels import labels_name_metrics
from train.config.tasks.values import Rule, Values


def _shape_goes_together(values: Values) -> Iterator[str]:
    """Apply the checks of the model configuration."""
    for fault in shape_faults(values.below("task.model.")):
        yield f"task.model.{fault.key}: {fault.message}"


def _channels_are_the_images(values: Values) -> Iterator[str]:
    for key, channels, what in (
        ("guidance_channels", 3, "guidance is RGB"),
        ("target_channels", 1, "channels are filtered separately"),
    ):
        if values[f"task.model.{key}"] != channels:
            yield f"task.model.{key}: {values[f'task.model.{key}']} does not fit this task: {what}; write {channels}"


def _there_are_images(values: Values) -> Iterator[str]:
    for key in ("sources", "validation_sources"):
        if not values[f"task.data.{key}"]:
            yield f"task.data.{key}: is empty; list at least one source, as in [{{path: procedural-scenes, stop: 200}}]"


def _a_crop_holds_two_pixels(values: Values) -> Iterator[str]:
    scale, crop = values["task.data.scale"], values["task.data.crop"]
    if crop is not None and crop < 2 * scale:
        yield f"task.data.crop: {crop} is less than two pixels at task.data.scale {scale}; write {2 * scale} or more"


_NO_UNITS = {  # kinds whose errors have no unit
    "texture_removal": "texture_removal, which reports errors in colors",
    "saliency_upsampling": "saliency_upsampling, which reports errors of maps from 0 to 1",
    "cross_modality_restoration": "cross_modality_restoration, which reports errors of images from 0 to 1",
}


def _units_have_an_effect(values: Values) -> Iterator[str]:
    """Units apply only to validation errors of depth; colors have none."""
    reasons = {"sources": "training images"}
    if (reason := _NO_UNITS.get(values["task.kind"])) is not None:
        reasons["validation_sources"] = reason
        if values["task.data.unit"] is not None:
            yield f"task.data.unit: has no effect on {reason}; remove it"
    for key, reason in reasons.items():
        for number, source in enumerate(values[f"task.data.{key}"]):
            for name, value in (("units_per_value", 1), ("unit", None)):
                if getattr(source, name) != value:
                    yield f"task.data.{key}.{number}.{name}: has no effect on {reason}; remove it"


def _units_of_sources_have_labels(values: Values) -> Iterator[str]:
    """Require a label beside a unit: reports find the unit of a metric by its label."""
    for number, source in enumerate(values["task.data.validation_sources"]):
        if source.unit is not None and source.label is None:
            yield (
                f"task.data.validation_sources.{number}.label: missing although its unit is set; name the set of "
                "metrics that have this unit, as in label: nyu"
            )


def _zero_is_a_value(values: Values) -> Iterator[str]:
    """Require that zeros are no holes in masks, whose background they are, and in photos, where they are black."""
    what = {"saliency_upsampling": "the background of a mask", "cross_modality_restoration": "black"}
    if (meaning := what.get(values["task.kind"])) is None:
        return
    for number, source in enumerate(values["task.data.validation_sources"]):
        if source.missing == 0 and not source.path.startswith("procedural-"):
            yield (
                f"task.data.validation_sources.{number}.missing: 0, the default, is {meaning} in this task and not a "
                "missing pixel; write null, or the value that marks missing pixels, as 255 in masks of PASCAL VOC"
            )


def _inputs_are_read(values: Values) -> Iterator[str]:
    if values["task.kind"] == "texture_removal":
        for number, source in enumerate(values["task.data.validation_sources"]):
            if source.input is not None:
                yield (
                    f"task.data.validation_sources.{number}.input: has no effect on texture_removal, whose input "
                    "is the guidance; remove it"
                )


def _other_guidance_is_read(values: Values) -> Iterator[str]:
    if values["task.other_guidance"] and not values["task.model.guidance"]:
        yield "task.other_guidance: has no effect because task.model.guidance is false; write false"


def _shown_pixel_is_inside(values: Values) -> Iterator[str]:
    pixel, images = values["task.shown_pixel"], values["task.shown_images"]
    if pixel is not None and images == 0:
        yield "task.shown_pixel: has no effect because task.shown_images is 0; remove it"


def _precision_is_fp32(values: Values) -> Iterator[str]:
    """Require fp32: batch statistics and pixel coordinates need more than 8 bits of mantissa."""
    if values["engine.precision"] == "bf16":
        yield (
            "engine.precision: bf16 is too coarse for this task: near column 300 its values are 2 pixels apart, and "
            "DeepSpeed does not support bf16 batch norm on a CPU; write fp32 or auto (which means fp32 here)"
        )
    if values["engine.gradient_dtype"] == "bf16":
        yield "engine.gradient_dtype: bf16 has no effect because this task runs in fp32; write fp32"


def _batch_norm_sees_each_batch_once(values: Values) -> Iterator[str]:
    if values["engine.activation_checkpointing"]:
        yield (
            "engine.activation_checkpointing: would pass every batch through the batch norms twice and so update their "
            "running statistics twice; write false, and lower task.data.crop or micro_batch_size to save memory"
        )


def _decayed_weights_exist(values: Values) -> Iterator[str]:
    if values["optim.embedding_weight_decay"] is not None:
        yield "optim.embedding_weight_decay: has no effect because a filter has no embeddings; remove it"
    if values["optim.output_norm_weight_decay"]:
        yield "optim.output_norm_weight_decay: has no effect because a filter has no output norms; write 0"


def _measured_layers_exist(values: Values) -> Iterator[str]:
    if values["probes.layers_every"] is not None:
        yield "probes.layers_every: has no effect because a filter has no stack of layers; write null"


NETWORK_RULES: tuple[Rule, ...] = (  # whatever is filtered
    _shape_goes_together,
    _channels_are_the_images,
    _precision_is_fp32,
    _batch_norm_sees_each_batch_once,
    _decayed_weights_exist,
    _measured_layers_exist,
)

RULES: tuple[Rule, ...] = (
    *NETWORK_RULES,
    _there_are_images,
    _a_crop_holds_two_pixels,
    _units_have_an_effect,
    _units_of_sources_have_labels,
    labels_name_metrics,
    _zero_is_a_value,
    _inputs_are_read,
    _other_guidance_is_read,
    _shown_pixel_is_inside,
)
