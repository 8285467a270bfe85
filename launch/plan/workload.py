"""The model and data that a run trains, as closed forms: a decoder or a joint image filter."""

from __future__ import annotations

from launch.plan.decoder import DecoderWorkload
from launch.plan.image_filter import FilterWorkload
from train.config.run import RunConfig
from train.config.tasks.language_model import LanguageModelConfig

Workload = DecoderWorkload | FilterWorkload


def workload_of(config: RunConfig) -> Workload:
    """Return what a configuration trains."""
    task = config.task
    return DecoderWorkload(task) if isinstance(task, LanguageModelConfig) else FilterWorkload(task)
