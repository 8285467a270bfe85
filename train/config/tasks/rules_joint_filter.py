"""Cross-field checks for joint-filter configs: network, image pairs, and settings that would be ignored."""

from __future__ import annotations

from collections.abc import Iterator

from modeling.joint_filter.facts_dkn import shape_faults
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


def _units_have_an_effect(values: Values) -> Iterator[str]:
    """Units apply only to validation errors of depth; colors have none."""
    reasons = {"sources": "training images"}
    if values["task.kind"] == "texture_removal":
        reasons["validation_sources"] = "texture_removal, which reports errors in colors"
        if values["task.data.unit"] is not None:
            yield f"task.data.unit: has no effect on {reasons['validation_sources']}; remove it"
    for key, reason in reasons.items():
        for number, source in enumerate(values[f"task.data.{key}"]):
            if source.units_per_value != 1:
                yield f"task.data.{key}.{number}.units_per_value: has no effect on {reason}; remove it"


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
    _other_guidance_is_read,
    _shown_pixel_is_inside,
)
