"""Dispatch from a configuration to its task."""

from __future__ import annotations

from typing import assert_never

from train.config.run import RunConfig
from train.config.tasks.box_segmentation import BoxClassificationConfig, SemanticSegmentationConfig
from train.config.tasks.joint_filter import (
    CrossModalityRestorationConfig,
    DepthUpsamplingConfig,
    SaliencyUpsamplingConfig,
    TextureRemovalConfig,
)
from train.config.tasks.language_model import LanguageModelConfig
from train.config.tasks.score_upsampling import ScoreUpsamplingConfig
from train.tasks.task import Task


def build_task(config: RunConfig) -> Task:
    """Return the task of a run, without opening its data."""
    match config.task:
        case LanguageModelConfig():
            from train.tasks.language_model import LanguageModel

            return LanguageModel(config.task, optim=config.optim, seed=config.seed)
        case DepthUpsamplingConfig():
            from train.tasks.joint_filter.depth_upsampling import DepthUpsampling

            return DepthUpsampling(
                config.task, optim=config.optim, seed=config.seed, micro_batch_size=config.micro_batch_size
            )
        case TextureRemovalConfig():
            from train.tasks.joint_filter.texture_removal import TextureRemoval

            return TextureRemoval(
                config.task, optim=config.optim, seed=config.seed, micro_batch_size=config.micro_batch_size
            )
        case SaliencyUpsamplingConfig():
            from train.tasks.joint_filter.saliency_upsampling import SaliencyUpsampling

            return SaliencyUpsampling(
                config.task, optim=config.optim, seed=config.seed, micro_batch_size=config.micro_batch_size
            )
        case CrossModalityRestorationConfig():
            from train.tasks.joint_filter.cross_modality_restoration import CrossModalityRestoration

            return CrossModalityRestoration(
                config.task, optim=config.optim, seed=config.seed, micro_batch_size=config.micro_batch_size
            )
        case BoxClassificationConfig():
            from train.tasks.segmentation.box_classification import BoxClassification

            return BoxClassification(
                config.task, optim=config.optim, seed=config.seed, micro_batch_size=config.micro_batch_size
            )
        case SemanticSegmentationConfig():
            from train.tasks.segmentation.semantic_segmentation import SemanticSegmentation

            return SemanticSegmentation(
                config.task, optim=config.optim, seed=config.seed, micro_batch_size=config.micro_batch_size
            )
        case ScoreUpsamplingConfig():
            from train.tasks.score_upsampling import ScoreUpsampling

            return ScoreUpsampling(
                config.task, optim=config.optim, seed=config.seed, micro_batch_size=config.micro_batch_size
            )
        case _:
            assert_never(config.task)
