"""Every kind of task: its configuration and the rules that its settings keep to.

A new kind is one class in the union and one entry of TASK_RULES here, and one arm of `train.tasks.build_task`, which
needs torch; pyright and a test hold the three together.
"""

from __future__ import annotations

from train.config import rules_decoder, rules_filters
from train.config.joint_filter import DepthUpsamplingConfig, TextureRemovalConfig
from train.config.language_model import LanguageModelConfig
from train.config.values import Rule

TaskConfig = LanguageModelConfig | DepthUpsamplingConfig | TextureRemovalConfig  # told apart by `kind`

TASK_RULES: dict[str, tuple[Rule, ...]] = {
    "language_model": rules_decoder.RULES,
    "depth_upsampling": rules_filters.RULES,
    "texture_removal": rules_filters.RULES,
}
