"""Settings of the task that trains a joint image filter to up-sample the score maps of a segmentation network."""

from __future__ import annotations

from typing import Literal

from modeling.segmentation.facts_bap import STRIDE
from train.config.setting import section, setting
from train.config.tasks.box_segmentation import AnnotatedImagesConfig, SegmenterCRFConfig
from train.config.tasks.joint_filter import FilterConfig


@section
class ScoreDataConfig(AnnotatedImagesConfig):
    """Images with masks, and the score maps of a segmentation network."""

    scores: str | None = setting(
        "Score maps: an exported segmentation network, or a folder with a file NAME.npy (classes, height, width) for "
        "each image, the background's scores first",
        default=None,
        null="made from the masks: the share of each class in a cell, and noise",
        resume="by_fingerprint",
        evaluation=True,
        judges=True,
    )
    stride: int | None = setting(
        "Side of the cells of scores that are made from masks",
        default=None,
        at_least=2,
        unit="pixels",
        null=str(STRIDE),
        evaluation=True,
        judges=True,
        at_most=256,
    )
    noise: float | None = setting(
        "Standard deviation of the noise in scores that are made from masks, of shares from 0 to 1",
        default=None,
        at_least=0,
        null="0.1",
        evaluation=True,
        judges=True,
        at_most=100,
    )
    crop: int | None = setting(
        "Side of the random training crops", default=None, at_least=16, unit="pixels", null="whole images", at_most=8192
    )
    flips: bool = setting("Randomly flip training images left to right", default=False)
    seed: int = setting(
        "Seed of sample order, crops, flips and noise", default=0, at_least=0, report="seed", at_most=2**64 - 1
    )


@section
class ScoreUpsamplingConfig:
    """Up-sampling of score maps guided by the image: Kim, Ponce and Ham, IJCV 2021."""

    kind: Literal["score_upsampling"] = setting("The task", default="score_upsampling")
    model: FilterConfig = setting("The filter", factory=FilterConfig)
    data: ScoreDataConfig = setting("Its images and score maps")
    band: int = setting(
        "Greatest distance to a boundary between classes of the pixels that band_miou counts",
        default=5,
        at_least=1,
        unit="pixels",
        evaluation=True,
        judges=True,
        at_most=1000,
    )
    baselines: bool = setting(
        "Also evaluate bilinear up-sampling, the guided filter and the dense CRF",
        default=True,
        resume="free",
        report="ignored",
        evaluation=True,
    )
    crf: SegmenterCRFConfig = setting("That CRF", factory=SegmenterCRFConfig, evaluation=True, judges=True)
    shown_images: int = setting(
        "Number of validation images saved to images/ at each evaluation",
        default=2,
        at_least=0,
        resume="free",
        report="ignored",
        at_most=1000,
    )
