"""Closed forms for what follows the features in box-supervised segmentation: pooling or enlarging, and the loss.

Sizes are in fp32 elements per image. C classes with the background, D channels, K boxes, N cells along a side of the
grid, Q = N N, R sub-regions along a side of a box.
"""

from __future__ import annotations

from dataclasses import dataclass

from modeling.segmentation.facts_bap import STRIDE, NetworkShape
from modeling.segmentation.facts_counts_bap import INDEX, cells
from train.config.tasks.box_segmentation import (
    BoxClassificationConfig,
    SegmentationNetworkConfig,
    SemanticSegmentationConfig,
)

_BYTE = 0.25  # elements


@dataclass(frozen=True)
class BoxHead:
    """Background-aware pooling, the classifier, and the cross-entropy of sub-regions and queries."""

    task: BoxClassificationConfig
    num_classes: int
    boxes: int

    def constant(self, height: int, width: int) -> float:
        """Return what the forward pass saves once for all images: rows and columns of the grid."""
        return self.task.model.grid * (-(-height // STRIDE) + -(-width // STRIDE)) + 1

    def kept_elements(self, height: int, width: int, *, several: bool) -> float:
        """Return what the forward pass saves; `several` images take copies where the layout does not fit."""
        model, features = self.task.model, _features(self.task.model)
        places, queries = cells(height, width), model.grid**2
        sides = -(-height // STRIDE) + -(-width // STRIDE)
        regions = self.boxes * model.roi**2
        dropped = features * places if model.dropout else 0  # else the last ReLU keeps the features
        attention = features * places + (queries + 5 + _BYTE) * places  # directions, cosines; norms, masks
        of_queries = queries * (2 * features + 4) + 1
        of_boxes = regions * (2 * features + 2) + self.boxes * model.roi * sides
        loss = (regions + queries) * (self.num_classes + INDEX)
        return dropped + attention + of_queries + of_boxes + loss

    def forward_elements(self, height: int, width: int) -> float:
        """Return the most that is alive at a time beyond what is kept.

        These are the image and, with what the boxes keep still to come, either the features weighted by 1 - A, their
        copy and its sums over rows, or these sums and their copy.
        """
        features, sums = _features(self.task.model) * cells(height, width), self._summed_over_rows(width)
        return 3 * height * width + max(2 * features + sums, 2 * sums) - 2 * self._pooled

    def backward_elements(self, height: int, width: int, *, several: bool) -> float:
        """Return the most that is alive at a time beyond what is kept, less what is freed by then.

        That is in the backward pass of the means over boxes, of the sums over rows, or of the features' directions.
        """
        features, sums = _features(self.task.model) * cells(height, width), self._summed_over_rows(width)
        return max(4 * self._pooled, sums + features - 2 * self._pooled, 5 * features - 2 * self._pooled)

    @property
    def _pooled(self) -> int:
        return _features(self.task.model) * self.boxes * self.task.model.roi**2

    def _summed_over_rows(self, width: int) -> int:
        return _features(self.task.model) * -(-width // STRIDE) * self.boxes * self.task.model.roi


@dataclass(frozen=True)
class SegmentationHead:
    """Cosines, their enlargement to the image's size, and the noise-aware loss."""

    task: SemanticSegmentationConfig
    num_classes: int

    def constant(self, height: int, width: int) -> float:
        """Return what the forward pass saves once for all images: the classes' weights, norms, and directions."""
        return self.num_classes * (_features(self.task.model) + 2.0) + 1

    def kept_elements(self, height: int, width: int, *, several: bool) -> float:
        """Return what the forward pass saves; `several` images take copies where the layout does not fit."""
        model, features, places = self.task.model, _features(self.task.model), cells(height, width)
        dropped = features * places if model.dropout else 0
        cosines = (features + 2) * places
        linear = features * places if model.classifier == "linear" and self._copies(several) else 0
        return dropped + cosines + linear + self._kept_by_loss * height * width + self._scalars

    def forward_elements(self, height: int, width: int) -> float:
        """Return the most that is alive at a time beyond what is kept: logits and cosines, enlarged and before.

        A confidence without gradients is kept for that time only.
        """
        confidence = self.num_classes + INDEX + 7 if self.task.detach_confidence else 0
        enlarged = (2 * self.num_classes + 1 + _BYTE + confidence) * height * width
        return enlarged + 2 * self.num_classes * cells(height, width)

    def backward_elements(self, height: int, width: int, *, several: bool) -> float:
        """Return the most that is alive at a time beyond what is kept, less what is freed by then.

        Either the gradients of 1 + cosines: from the maximum over classes, zeros, and these with that of the label; or,
        with the loss's tensors freed, the backward pass of the features' directions, four tensors of their size. A
        linear classifier adds one, the gradient of its features, and frees its copy of them, if it took one.
        """
        loss = 0 if self.task.detach_confidence else 3 * self.num_classes - 7
        tensors = 5 if self.task.model.classifier == "linear" and not self._copies(several) else 4
        normalizing = tensors * _features(self.task.model) * cells(height, width)
        return max(loss * height * width, normalizing - self._kept_by_loss * height * width)

    def _copies(self, several: bool) -> bool:
        """Return whether products need a copy of the features: the neck of lite0 leaves channels last, as they read."""
        return several and self.task.model.backbone == "vgg16"

    @property
    def _kept_by_loss(self) -> int:
        """Elements per pixel: log-probabilities, targets, weights; of the confidence, 1 + cosines and what follows."""
        if self.task.detach_confidence:
            return self.num_classes + INDEX + 2
        return 2 * self.num_classes + 2 * INDEX + 9

    @property
    def _scalars(self) -> int:
        """Elements per image: sums of weights, and those that divide."""
        return 2 if self.task.detach_confidence else 4


def _features(model: SegmentationNetworkConfig) -> int:
    return NetworkShape(backbone=model.backbone, features=model.features).width
