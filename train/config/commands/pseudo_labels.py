"""Settings of the command `python -m train.pseudo_labels`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from train.config.setting import section, setting
from train.config.tasks.box_segmentation import AnnotatedSourceConfig, CRFConfig


@section
class PseudoLabelConfig:
    """How labels are made; the defaults are the authors'."""

    attention_threshold: float = setting(
        "Background attention inside boxes below this part of its maximum counts as 0. It decides more than all else",
        default=0.99,
        at_least=0,
        at_most=1,
    )
    grid: int = setting(
        "Cells along a side of an image, each with a background query", default=1, at_least=1, at_most=1024
    )
    crf: CRFConfig = setting("The dense CRF", factory=CRFConfig)
    sources: tuple[AnnotatedSourceConfig, ...] | None = setting(
        "Images to label", default=None, null="those that the run was trained on"
    )
    grabcut: bool = setting(
        "Where the true masks are known, also compare with GrabCut, which takes about a second a box", default=True
    )
    shown_images: int = setting(
        "Number of images whose attention and activation are kept for reports", default=4, at_least=0, at_most=1000
    )

    def as_facts(self) -> dict[str, Any]:
        """Return the settings that decide how the labels are, as plain values: all but what is only shown."""
        return {name: value for name, value in asdict(self).items() if name != "shown_images"}
