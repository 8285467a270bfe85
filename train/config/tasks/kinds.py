"""Registry of task kinds: the configuration and the validation rules of each.

A new kind is one class in the union, one entry in TASK_RULES, and one branch in `train.tasks.build_task`, which needs
torch; pyright and a test keep the three in sync. Joint filters have a union of their own, and one set of rules. A kind
whose parameter groups have learning rates above optim.lr is also in LARGEST_LR_FACTORS.
"""

from __future__ import annotations

from typing import get_args

from train.config.setting import default_of
from train.config.tasks import (
    rules_box_segmentation,
    rules_joint_filter,
    rules_language_model,
    rules_score_upsampling,
)
from train.config.tasks.box_segmentation import (
    LARGEST_LR_FACTOR,
    BoxClassificationConfig,
    SemanticSegmentationConfig,
)
from train.config.tasks.joint_filter import FilterTaskConfig
from train.config.tasks.language_model import LanguageModelConfig
from train.config.tasks.score_upsampling import ScoreUpsamplingConfig
from train.config.tasks.values import Rule

TaskConfig = (  # discriminated by `kind`
    LanguageModelConfig
    | FilterTaskConfig
    | ScoreUpsamplingConfig
    | BoxClassificationConfig
    | SemanticSegmentationConfig
)

TASK_RULES: dict[str, tuple[Rule, ...]] = {
    "language_model": rules_language_model.RULES,
    **{default_of(task, "kind"): rules_joint_filter.RULES for task in get_args(FilterTaskConfig)},
    "score_upsampling": rules_score_upsampling.RULES,
    "box_classification": rules_box_segmentation.BOX_CLASSIFICATION_RULES,
    "semantic_segmentation": rules_box_segmentation.SEMANTIC_SEGMENTATION_RULES,
}

# By kind, the largest `lr_factor` that a parameter group of the task may have; 1 where a kind is absent. Which rates
# keep weights finite is decided from the configuration, before there is a model whose groups could be asked.
LARGEST_LR_FACTORS: dict[str, float] = {
    "box_classification": LARGEST_LR_FACTOR,
    "semantic_segmentation": LARGEST_LR_FACTOR,
}
