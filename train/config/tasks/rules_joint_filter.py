"""What no single type can say of a joint image filter: its window, its images, and settings that it never reads."""

from __future__ import annotations

from collections.abc import Iterator

from modeling.joint_filter.facts_dkn import shape_faults
from train.config.values import Rule, Values


def _shape_goes_together(values: Values) -> Iterator[str]:
    """What the filter itself refuses."""
    for fault in shape_faults(values.below("task.model.")):
        yield f"task.model.{fault.key}: {fault.message}"


def _channels_are_the_images(values: Values) -> Iterator[str]:
    for key, channels, what in (
        ("guidance_channels", 3, "guidance is RGB"),
        ("target_channels", 1, "channels are filtered one by one"),
    ):
        if values[f"task.model.{key}"] != channels:
            yield f"task.model.{key}: {values[f'task.model.{key}']} is not what this task has: {what}; write {channels}"


def _there_are_images(values: Values) -> Iterator[str]:
    for key in ("sources", "validation_sources"):
        if not values[f"task.data.{key}"]:
            yield f"task.data.{key}: is empty; write at least one, as in [{{path: procedural-scenes, stop: 200}}]"


def _a_crop_holds_two_pixels(values: Values) -> Iterator[str]:
    scale, crop = values["task.data.scale"], values["task.data.crop"]
    if crop is not None and crop < 2 * scale:
        yield f"task.data.crop: {crop} is less than two pixels at task.data.scale {scale}; write {2 * scale} or more"


def _units_are_told_of_errors(values: Values) -> Iterator[str]:
    """Only validation tells errors, and only of depth in units; colours have none."""
    why = {"sources": "images to train on"}
    if values["task.kind"] == "texture_removal":
        why["validation_sources"] = "texture_removal, whose errors are of colours"
        if values["task.data.unit"] is not None:
            yield f"task.data.unit: has no effect on {why['validation_sources']}; leave it out"
    for key, what in why.items():
        for number, source in enumerate(values[f"task.data.{key}"]):
            if source.units_per_value != 1:
                yield f"task.data.{key}.{number}.units_per_value: has no effect on {what}; leave it out"


def _other_guidance_is_seen(values: Values) -> Iterator[str]:
    if values["task.other_guidance"] and not values["task.model.guidance"]:
        yield "task.other_guidance: has no effect, as task.model.guidance is false; write false"


def _shown_pixel_is_inside(values: Values) -> Iterator[str]:
    pixel, images = values["task.shown_pixel"], values["task.shown_images"]
    if pixel is not None and images == 0:
        yield "task.shown_pixel: has no effect, as task.shown_images is 0; leave it out"


def _it_is_computed_in_fp32(values: Values) -> Iterator[str]:
    """Batch statistics and pixel coordinates do not survive 8 bits of mantissa."""
    if values["engine.precision"] == "bf16":
        yield (
            "engine.precision: bf16 can not hold this task: near column 300 its numbers are 2 pixels apart, and "
            "DeepSpeed's batch norm on a CPU refuses it; write fp32 or auto (which is fp32 here)"
        )
    if values["engine.gradient_dtype"] == "bf16":
        yield "engine.gradient_dtype: bf16 has no effect, as this task is computed in fp32; write fp32"


def _batch_norm_sees_a_batch_once(values: Values) -> Iterator[str]:
    if values["engine.activation_checkpointing"]:
        yield (
            "engine.activation_checkpointing: would show every batch to the batch norms twice, and move their running "
            "statistics twice; write false, and a smaller task.data.crop or micro_batch_size where memory is short"
        )


def _there_are_no_such_weights(values: Values) -> Iterator[str]:
    if values["optim.embedding_weight_decay"] is not None:
        yield "optim.embedding_weight_decay: has no effect, as a filter has no embeddings; leave it out"
    if values["optim.output_norm_weight_decay"]:
        yield "optim.output_norm_weight_decay: has no effect, as a filter has no such norms; write 0"


RULES: tuple[Rule, ...] = (
    _shape_goes_together,
    _channels_are_the_images,
    _there_are_images,
    _a_crop_holds_two_pixels,
    _units_are_told_of_errors,
    _other_guidance_is_seen,
    _shown_pixel_is_inside,
    _it_is_computed_in_fp32,
    _batch_norm_sees_a_batch_once,
    _there_are_no_such_weights,
)
