"""The model and data that a run trains, as closed forms: a decoder, an image filter, or a segmentation network."""

from __future__ import annotations

from launch.plan.decoder import DecoderWorkload
from launch.plan.image_filter import FilterWorkload
from launch.plan.score_filter import ScoreFilterWorkload
from launch.plan.segmentation import SegmentationWorkload
from train.config.run import RunConfig
from train.config.tasks.box_segmentation import BoxClassificationConfig, SemanticSegmentationConfig
from train.config.tasks.language_model import LanguageModelConfig
from train.config.tasks.score_upsampling import ScoreUpsamplingConfig

Workload = DecoderWorkload | FilterWorkload | SegmentationWorkload


def workload_of(config: RunConfig) -> Workload:
    """Return what a configuration trains."""
    task = config.task
    if isinstance(task, LanguageModelConfig):
        return DecoderWorkload(task)
    if isinstance(task, BoxClassificationConfig | SemanticSegmentationConfig):
        return SegmentationWorkload(task)
    if isinstance(task, ScoreUpsamplingConfig):
        return ScoreFilterWorkload(task)
    return FilterWorkload(task)
