"""Cross-field checks for the up-sampling of score maps: network, images, scores, and settings that would be ignored."""

from __future__ import annotations

from collections.abc import Iterator

from train.config.tasks.rules_box_segmentation import IMAGE_RULES, changed_crf
from train.config.tasks.rules_joint_filter import NETWORK_RULES
from train.config.tasks.values import Rule, Values


def _made_scores_read_their_keys(values: Values) -> Iterator[str]:
    if values["task.data.scores"] is None:
        return
    for key in ("stride", "noise"):
        if values[f"task.data.{key}"] is not None:
            yield f"task.data.{key}: has no effect because task.data.scores is set; remove it"


def _crf_is_a_baseline(values: Values) -> Iterator[str]:
    if not values["task.baselines"]:
        yield from changed_crf(values, because="task.baselines is false")


RULES: tuple[Rule, ...] = (
    *NETWORK_RULES,
    *IMAGE_RULES,
    _made_scores_read_their_keys,
    _crf_is_a_baseline,
)
