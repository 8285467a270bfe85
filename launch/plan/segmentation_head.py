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
    constant: float = 0.0  # elements that do not grow with the batch

    def kept_elements(self, height: int, width: int, *, several: bool) -> float:
        """Return what the forward pass saves; `several` images take copies where the layout does not fit."""
        model, features = self.task.model, _features(self.task.model)
        places, queries = cells(height, width), model.grid**2
        sides = -(-height // STRIDE) + -(-width // STRIDE)
        regions = self.boxes * model.roi**2
        dropped = features * places if model.dropout else 0  # else the last ReLU keeps the features
        attention = features * places + (queries + 5 + _BYTE) * places  # directions, cosines; norms, masks
        of_queries = queries * (2 * features + 4) + model.grid * sides
        of_boxes = regions * (2 * features + 2) + self.boxes * model.roi * sides
        loss = (regions + queries) * (self.num_classes + INDEX)
        return dropped + attention + of_queries + of_boxes + loss

    def forward_elements(self, height: int, width: int) -> float:
        """Return the most that is alive at a time beyond what is kept: features weighted by 1 - A, summed over rows."""
        features = _features(self.task.model)
        return features * cells(height, width) + self._summed_over_rows(width)

    def backward_elements(self, height: int, width: int) -> float:
        """Return the most that is alive at a time beyond what is kept, less what is freed by then.

        Either the directions' backward pass, with five tensors of the features' size, or that of the sum over columns.
        """
        features = _features(self.task.model)
        regions = self.boxes * self.task.model.roi**2
        normalizing = 5 * features * cells(height, width) - regions * 2 * features
        summing = 2 * self._summed_over_rows(width) + features * cells(height, width)
        return max(normalizing, summing)

    def _summed_over_rows(self, width: int) -> int:
        return _features(self.task.model) * -(-width // STRIDE) * self.boxes * self.task.model.roi


@dataclass(frozen=True)
class SegmentationHead:
    """Cosines, their enlargement to the image's size, and the noise-aware loss."""

    task: SemanticSegmentationConfig
    num_classes: int

    @property
    def constant(self) -> float:
        """Elements that do not grow with the batch: the classes' weights, their norms, and directions."""
        return self.num_classes * (_features(self.task.model) + 2.0)

    def kept_elements(self, height: int, width: int, *, several: bool) -> float:
        """Return what the forward pass saves; `several` images take copies where the layout does not fit."""
        model, features, places = self.task.model, _features(self.task.model), cells(height, width)
        dropped = features * places if model.dropout else 0
        cosines = (features + 2) * places
        linear = features * places if model.classifier == "linear" and several else 0
        return dropped + cosines + linear + self._kept_by_loss * height * width

    def forward_elements(self, height: int, width: int) -> float:
        """Return the most that is alive at a time beyond what is kept: logits and cosines at full size."""
        return (2 * self.num_classes + 1) * height * width

    def backward_elements(self, height: int, width: int) -> float:
        """Return the most that is alive at a time beyond what is kept, less what is freed by then.

        Either the gradients of 1 + cosines: from the maximum over classes, zeros, and these with that of the label; or,
        with the loss's tensors freed, the backward pass of the features' directions, four tensors of their size.
        """
        loss = 0 if self.task.detach_confidence else 3 * self.num_classes - 7
        normalizing = 4 * _features(self.task.model) * cells(height, width)
        return max(loss * height * width, normalizing - self._kept_by_loss * height * width)

    @property
    def _kept_by_loss(self) -> int:
        """Elements per pixel: log-probabilities, targets, weights; of the confidence, 1 + cosines and what follows."""
        if self.task.detach_confidence:
            return self.num_classes + INDEX + 2
        return 2 * self.num_classes + 2 * INDEX + 9


def _features(model: SegmentationNetworkConfig) -> int:
    return NetworkShape(backbone=model.backbone, features=model.features).width
