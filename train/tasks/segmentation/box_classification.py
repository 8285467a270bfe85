"""Classification of boxes with background-aware pooling: from boxes to a network that can make pseudo labels.

Oh, Kim and Ham, Background-aware pooling and noise-aware loss for weakly-supervised semantic segmentation, CVPR 2021,
equations 1 to 4.

B batch, C classes with the background, H height, W width, K boxes of an image (padded), R sub-regions along a side of a
box, Q background queries of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.segmentation.background_pooling_bap import NO_BOX, background_queries
from modeling.segmentation.configuration_bap import BoxClassifierConfig
from modeling.segmentation.modeling_bap import BoxClassifier, BoxOutput
from train.config.tasks.box_segmentation import BoxClassificationConfig
from train.data.annotated.images import Annotated
from train.tasks.segmentation.box_supervision import BoxSupervision, network_fields, padded
from train.tasks.segmentation.exhibits import boxes_with_classes, show_labels
from train.tasks.sums import add
from train.tasks.task import Batch, Gallery, ModelCard, StepOutput, Sums

_USAGE = """\
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
labels = model.labels("image.jpg", [("{name}", 10, 20, 110, 220)])  # class, x0, y0, x1, y1 of each box
labels.crf  # (height, width), a class at each pixel; also .retrieved, .attention and .activation"""


class BoxClassification(BoxSupervision[BoxClassificationConfig, BoxClassifier]):
    """The task `box_classification`; `weight` counts what is classified: sub-regions of boxes, and background queries.

    Batches contain `image` (B, 3, H, W) uint8, `boxes` (B, K, 4) int64 as x0, y0, x1, y1 in pixels, `classes` (B, K)
    int64 with NO_BOX as padding, `size` (B, 2) int64, height and width of each image, and `key` (B,) int64, of its
    dropout masks. K is the same in all batches of training, so that a sample is the same in any.
    """

    def _network(self) -> BoxClassifier:
        model = self.config.model
        own = {name: getattr(model, name) for name in ("pooling", "grid", "roi", "smallest_background")}
        return BoxClassifier(BoxClassifierConfig.of_classes(self.classes, **network_fields(model), **own))

    def _training_sample(self, index: int, step: int) -> dict[str, np.ndarray]:
        """Return a sample with as many rows of boxes as any training image needs: the same sample in any batch."""
        sample = super()._training_sample(index, step)
        return sample | _rows_of_boxes(sample["boxes"], sample["classes"], self.training.most_boxes)

    def _arrays(self, sample: Annotated) -> dict[str, np.ndarray]:
        """Return image, boxes and classes, with one row at least: torch's reductions over none of them fail."""
        return {"image": sample.image, **_rows_of_boxes(sample.boxes, sample.classes, 1)}

    def _collated(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        return {
            "image": padded([sample["image"].transpose(2, 0, 1) for sample in samples], fill=0),
            "boxes": padded([sample["boxes"] for sample in samples], fill=0),
            "classes": padded([sample["classes"] for sample in samples], fill=NO_BOX),
            "size": torch.tensor([sample["image"].shape[:2] for sample in samples]),
            "key": torch.from_numpy(np.stack([sample["key"] for sample in samples])),
        }

    # ------------------------------------------------------------------------------------------------------- the loss

    def weight(self, batch: Batch) -> float:
        """Return the number of sub-regions of boxes, and of grid cells with background."""
        regions = int((batch["classes"] != NO_BOX).sum()) * self.config.model.roi**2
        coverage = BoxClassifier.coverage(batch["boxes"].float(), batch["classes"], batch["image"].shape[-2:])
        background = coverage.background()
        queries = background_queries(torch.zeros_like(background)[:, None], background, self.config.model.grid)
        return float(regions + int(queries.valid.sum()))

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed cross-entropy of all sub-regions and queries; all images have one size."""
        output: BoxOutput = model(batch["image"] / 255, batch["boxes"].float(), batch["classes"], batch["key"])
        loss_sum, weight = _cross_entropy(output, batch["classes"])
        return StepOutput(
            loss_sum, weight, {"loss": (loss_sum.detach(), weight), **_accuracies(output, batch["classes"])}
        )

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the cross-entropy and the shares of boxes and queries that are classified rightly."""
        sums: Sums = {}
        for number, (height, width) in enumerate(batch["size"].tolist()):
            one = {name: value[number : number + 1] for name, value in batch.items()}
            image = one["image"][..., :height, :width] / 255
            boxes, classes = _without_padding(one)
            output: BoxOutput = model(image, boxes, classes, one["key"])
            of_image = {"loss": _cross_entropy(output, classes), **_accuracies(output, classes)}
            for name, (value, weight) in of_image.items():
                add(sums, name, value, weight)
        return sums

    # ---------------------------------------------------------------------------------------------------- the results

    def illustrate(self, model: nn.Module, gallery: Gallery) -> None:
        """Show labels of the first validation images, and what leads to them."""
        network = getattr(model, "module", model)
        assert isinstance(network, BoxClassifier)
        for index in range(min(self.config.shown_images, self.num_validation_samples)):
            sample = self.validation.read(index)
            labels = network.labels(sample.image, boxes_with_classes(sample))
            show_labels(sample, labels, self.validation.classes, gallery)

    def card(self) -> ModelCard:
        """Return the model card of an exported classifier."""
        model = self.config.model
        how = "background-aware" if model.pooling == "background" else "average"
        return ModelCard(
            pipeline_tag="image-segmentation",
            tags=["box-supervised-segmentation"],
            summary=f"A classifier of boxes with {how} pooling, for pseudo labels (Oh, Kim and Ham, CVPR 2021).",
            usage=_USAGE.format(name=self.classes[0]),
            data=self._data_in_words(),
            details=self._details(),
        )


def _rows_of_boxes(boxes: np.ndarray, classes: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Return boxes (K, 4) and classes (K,), padded to a number of rows if they have fewer."""
    padding = max(0, rows - len(boxes))
    return {
        "boxes": np.pad(boxes, ((0, padding), (0, 0))),
        "classes": np.pad(classes, (0, padding), constant_values=NO_BOX),
    }


def _without_padding(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return boxes (B, K, 4) fp32 and classes (B, K), with no more rows than the batch needs, but one."""
    most = max(1, int((batch["classes"] != NO_BOX).sum(dim=1).max()))
    return batch["boxes"][:, :most].float(), batch["classes"][:, :most]


def _cross_entropy(output: BoxOutput, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy summed over sub-regions, of their box's class, and queries; and how many they are."""
    assert output.box_logits is not None
    assert output.query_logits is not None
    assert output.valid_queries is not None
    of_regions = classes[:, :, None].expand(output.box_logits.shape[:-1])  # (B, K, R R)
    of_queries = torch.where(output.valid_queries, 0, NO_BOX)  # (B, Q)
    logits = torch.cat((output.box_logits.flatten(0, 2), output.query_logits.flatten(0, 1)))
    targets = torch.cat((of_regions.flatten(), of_queries.flatten()))
    return F.cross_entropy(logits, targets, ignore_index=NO_BOX, reduction="sum"), (targets != NO_BOX).sum().float()


@torch.no_grad()
def _accuracies(output: BoxOutput, classes: Tensor) -> Sums:
    """Return how many boxes, by the mean over their sub-regions, and how many queries are classified rightly."""
    assert output.box_logits is not None
    assert output.query_logits is not None
    assert output.valid_queries is not None
    boxes, queries = classes != NO_BOX, output.valid_queries
    right_boxes = (output.box_logits.mean(dim=2).argmax(dim=-1) == classes) & boxes
    right_queries = (output.query_logits.argmax(dim=-1) == 0) & queries
    return {
        "box_accuracy": (right_boxes.sum().float(), boxes.sum().float()),
        "background_accuracy": (right_queries.sum().float(), queries.sum().float()),
    }
