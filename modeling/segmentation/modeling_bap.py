"""Box-supervised segmentation: a classifier of boxes, and a segmentation network.

Oh, Kim and Ham, Background-aware pooling and noise-aware loss for weakly-supervised semantic segmentation, CVPR 2021.

Shapes: B batch, C classes with the background, D channels, K boxes of an image (padded), Q background queries of an
image, R sub-regions along a side of a box, H height and W width of an image, h and w of its feature map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, initialization
from transformers.utils.generic import ModelOutput

from .background_pooling_bap import (
    Coverage,
    Queries,
    background_attention,
    background_queries,
    cover,
    pool_boxes,
)
from .configuration_bap import BoxClassifierConfig, SegmenterConfig
from .dense_crf_bap import CRFSettings, mean_field
from .facts_bap import STRIDE
from .images_bap import palette_image, read_boxes, read_image
from .labels_bap import Labels, LabelSettings, label_image
from .lite0_bap import Convolution
from .trunk_bap import Trunk

_CLASSIFIER_STD = 0.01


class _Network(PreTrainedModel):
    """Declarations and initial weights of both networks."""

    main_input_name = "images"
    _auto_class = "AutoModel"
    _no_split_modules = ["Trunk"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the classifier from N(0, 0.01), and convolutions so that the variance stays (He et al., ICCV 2015)."""
        if isinstance(module, Classifier):
            initialization.normal_(module.weight, std=_CLASSIFIER_STD)
        elif isinstance(module, nn.Conv2d):
            initialization.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, Convolution):
            if not module.activation:  # a projection, whose convolution was drawn for a ReLU that does not follow
                initialization.kaiming_normal_(module.convolution.weight, nonlinearity="linear")
        else:
            super()._init_weights(module)


class Classifier(nn.Module):
    """Features compared with a weight for each class; without bias.

    Only `forward` reads the weight, so that ZeRO-3, which partitions it, gathers it first.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(num_classes, width))

    def forward(self, features: Tensor, *, cosine: bool = False) -> Tensor:
        """Map (..., D) to products with each class's weight, or to the cosines of both: (..., C)."""
        if cosine:
            return F.normalize(features, dim=-1) @ F.normalize(self.weight, dim=1).T
        return features @ self.weight.T

    def weights(self) -> Tensor:
        """Return the weight of each class, (C, D)."""
        return self(torch.eye(self.width, device=self.weight.device)).T


# ------------------------------------------------------------------------------------------------------------- boxes


@dataclass
class BoxOutput(ModelOutput):
    """Output of a forward pass of BoxClassifier."""

    box_logits: Tensor | None = None  # (B, K, R R, C)
    query_logits: Tensor | None = None  # (B, Q, C)
    valid_queries: Tensor | None = None  # (B, Q) bool: cells with background
    attention: Tensor | None = None  # (B, h, w), A


class BoxClassifier(_Network):
    """Classifies the pooled features of boxes, and those of the background around them."""

    config: BoxClassifierConfig
    config_class = BoxClassifierConfig

    def __init__(self, config: BoxClassifierConfig) -> None:
        super().__init__(config)
        self.trunk = Trunk(config.shape, dilation=1)
        self.classifier = Classifier(len(config.classes), config.shape.width)
        self.post_init()

    def forward(self, images: Tensor, boxes: Tensor, classes: Tensor, keys: Tensor | None = None) -> BoxOutput:
        """Classify boxes and background queries.

        Args:
            images: (B, 3, H, W) from 0 to 1.
            boxes: (B, K, 4) as x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
            classes: (B, K), which only tell padding (-1) from boxes.
            keys: (B,), of the samples' dropout masks; None: torch's global generator.
        """
        features = self.trunk(images, keys)
        coverage = self.coverage(boxes, classes, images.shape[-2:], regions=self.config.roi)
        background = coverage.background()
        queries = background_queries(features, background, self.config.grid)
        attention = background_attention(features, background, self._used(queries, background))
        pooled = pool_boxes(features, attention, coverage)
        return BoxOutput(
            box_logits=self.classifier(pooled),
            query_logits=self.classifier(queries.features),
            valid_queries=queries.valid,
            attention=attention,
        )

    @staticmethod
    def coverage(boxes: Tensor, classes: Tensor, size: torch.Size, *, regions: int = 1) -> Coverage:
        """Return how much of each cell of the feature map of images of a size boxes cover."""
        height, width = (-(-side // STRIDE) for side in size)
        return cover(boxes, classes, height=height, width=width, stride=STRIDE, regions=regions)

    def _used(self, queries: Queries, background: Tensor) -> Queries:
        """Return the queries, none of them valid for images whose boxes are averaged."""
        if self.config.pooling == "average":
            return Queries(queries.features, torch.zeros_like(queries.valid))
        enough = background.mean(dim=(1, 2)) > self.config.smallest_background
        return Queries(queries.features, queries.valid & enough[:, None])

    @torch.no_grad()
    def labels(self, image: Any, boxes: Any, *, settings: LabelSettings | None = None, grid: int = 1) -> Labels:
        """Label every pixel of an image from its boxes; the background has its attention however boxes are pooled.

        Args:
            image: A PIL image, an array (H, W, 3) of bytes, or a path.
            boxes: A (class, x0, y0, x1, y1) for each box; the class by name or number, x1 and y1 exclusive.
            settings: Of the labels; None: the authors'.
            grid: Cells along a side of the image, each with a background query.

        Raises:
            ValueError: A box has an unknown class, or lies outside of the image.
        """
        pixels = read_image(image).to(self.device)  # (3, H, W) bytes
        places, classes = (t.to(self.device) for t in read_boxes(boxes, pixels.shape[-2:], self.config.classes))
        was_training = self.training
        self.eval()
        features = self.trunk(pixels[None] / 255)
        self.train(was_training)
        background = self.coverage(places[None].float(), classes[None], pixels.shape[-2:]).background()
        queries = background_queries(features, background, grid)
        query = queries.features[0][queries.valid[0]] if queries.valid.any() else None
        return label_image(
            features[0], self.classifier.weights(), query, pixels.float(), places, classes, settings or LabelSettings()
        )


# ------------------------------------------------------------------------------------------------------ segmentation


@dataclass
class SegmenterOutput(ModelOutput):
    """Output of a forward pass of Segmenter, at the size of the feature map."""

    logits: Tensor | None = None  # (B, C, h, w)
    cosines: Tensor | None = None  # (B, C, h, w), between features and the classifier's weights


class Segmentation(NamedTuple):
    """A segmented image.

    Args:
        mask: A PIL image of class numbers, with the VOC palette.
        scores: (C, H, W), sums over classes are 1.
    """

    mask: Image
    scores: Tensor


class Segmenter(_Network):
    """Gives each place of an image a class."""

    config: SegmenterConfig
    config_class = SegmenterConfig

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        self.trunk = Trunk(config.shape, dilation=12)
        self.classifier = Classifier(len(config.classes), config.shape.width)
        self.post_init()

    def forward(self, images: Tensor, keys: Tensor | None = None) -> SegmenterOutput:
        """Classify each place.

        Args:
            images: (B, 3, H, W) from 0 to 1.
            keys: (B,), of the samples' dropout masks; None: torch's global generator.
        """
        features = self.trunk(images, keys).movedim(1, -1)  # (B, h, w, D)
        cosines = self.classifier(features, cosine=True).movedim(-1, 1)
        if self.config.classifier == "cosine":
            return SegmenterOutput(logits=cosines * self.config.temperature, cosines=cosines)
        return SegmenterOutput(logits=self.classifier(features).movedim(-1, 1), cosines=cosines)

    @torch.no_grad()
    def scores(self, images: Tensor, *, flips: bool = False) -> Tensor:
        """Return class probabilities at the images' size, (B, C, H, W).

        Args:
            images: (B, 3, H, W) from 0 to 1.
            flips: Average the logits with those of the mirrored images.
        """
        logits = self(images).logits
        if flips:
            logits = (logits + self(images.flip(-1)).logits.flip(-1)) / 2
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False).softmax(dim=1)

    @torch.no_grad()
    def segment(self, image: Any, *, flips: bool = False, crf: CRFSettings | None = None) -> Segmentation:
        """Segment an image.

        Args:
            image: A PIL image, an array (H, W, 3) of bytes, or a path.
            flips: Average with the mirrored image.
            crf: Refine the scores with a dense CRF of these settings; None: do not.
        """
        pixels = read_image(image).to(self.device)
        was_training = self.training
        self.eval()
        scores = self.scores(pixels[None] / 255, flips=flips)[0]
        self.train(was_training)
        if crf is not None:
            scores = mean_field(scores, pixels.float(), crf)
        return Segmentation(mask=palette_image(scores.argmax(dim=0)), scores=scores)
