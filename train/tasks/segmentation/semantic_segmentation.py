"""Semantic segmentation, from masks or from pseudo labels with the noise-aware loss.

Oh, Kim and Ham, Background-aware pooling and noise-aware loss for weakly-supervised semantic segmentation, CVPR 2021,
equations 10 to 14.

B batch, C classes with the background, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.segmentation.configuration_bap import SegmenterConfig
from modeling.segmentation.dense_crf_bap import CRFSettings, mean_field
from modeling.segmentation.facts_bap import BACKGROUND, VOID
from modeling.segmentation.modeling_bap import Segmenter, SegmenterOutput
from modeling.segmentation.noise_aware_loss_bap import NoiseAwareLoss, confidence, noise_aware_loss
from train.config.errors import ConfigError
from train.config.tasks.box_segmentation import SemanticSegmentationConfig
from train.data.annotated.collection import AnnotatedImages
from train.data.annotated.images import Annotated
from train.data.annotated.label_folder import LabelFolder, open_labels
from train.data.split import Split
from train.tasks.segmentation.annotated_data import SECTIONS
from train.tasks.segmentation.box_supervision import BoxSupervision, network_fields, padded
from train.tasks.segmentation.class_ious import class_ious, mean_iou
from train.tasks.segmentation.exhibits import show_prediction, show_training
from train.tasks.sums import add
from train.tasks.task import Batch, Gallery, ModelCard, StepOutput, Sums

_GAMMA, _LAMBDA = 7.0, 0.1  # the paper's, where the settings are null
_LABELS = "task.data.labels"

_USAGE = """\
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
segmented = model.segment("image.jpg")
segmented.mask.save("mask.png")  # a PIL image with the VOC palette
segmented.scores  # (classes, height, width), sums over classes are 1; names: model.config.id2label"""


class SemanticSegmentation(BoxSupervision[SemanticSegmentationConfig, Segmenter]):
    """The task `semantic_segmentation`; each image has a mean of its own (equation 14), and `weight` counts images.

    Batches contain `image` (B, 3, H, W) uint8, `labels` (B, 2, H, W) uint8, the two labels that are compared (twice the
    same where one is learned), with VOID as padding, `size` (B, 2) int64, height and width of each image, and `key`
    (B,) int64, of its dropout masks.
    """

    @cached_property
    def labels(self) -> LabelFolder | None:
        """The pseudo labels of the training images; None: their masks are learned."""
        path = self.config.data.labels
        return None if path is None else open_labels(path, self.training, key=_LABELS)

    def _fingerprints(self) -> Iterator[str]:
        yield from super()._fingerprints()
        if self.labels is not None:
            yield self.labels.fingerprint

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """What both tasks record, and how the labels were made."""
        labels = self.labels
        if labels is None:
            return super().data_facts
        facts = {name: labels.facts[name] for name in ("run", "step", "settings", "quality", "agreement")}
        return {**super().data_facts, "labels": {"path": str(labels.folder), **facts}}

    def _split_faults(self, split: Split, images: AnnotatedImages) -> Iterator[str]:
        yield from super()._split_faults(split, images)
        if not images.have_masks and (split == "validation" or self.config.loss == "truth"):
            without = next(i for i in range(len(images)) if not images.has_mask(i))
            yield (
                f"{SECTIONS[split]}: {images.name(without)} has no mask in SegmentationClass, which "
                f"{'validation needs' if split == 'validation' else 'task.loss truth learns from'}"
            )
        if split == "training":
            try:
                _ = self.labels
            except ConfigError as error:
                yield from error.faults

    def _network(self) -> Segmenter:
        model = self.config.model
        own = {"classifier": model.classifier, "temperature": model.temperature}
        return Segmenter(SegmenterConfig.of_classes(self.classes, **network_fields(model), **own))

    def _labeled(self, index: int) -> Annotated:
        """Return a training image with its two labels as masks (H, W, 2)."""
        sample = self.training.read(index)
        if self.labels is None:
            assert sample.mask is not None
            return sample._replace(mask=np.stack((sample.mask, sample.mask), axis=-1))
        crf, retrieved = self.labels.read(index)
        if self.config.loss in ("crf", "retrieved"):
            crf = retrieved = crf if self.config.loss == "crf" else retrieved
        return sample._replace(mask=np.stack((crf, retrieved), axis=-1))

    def _arrays(self, sample: Annotated) -> dict[str, np.ndarray]:
        assert sample.mask is not None
        masks = sample.mask if sample.mask.ndim == 3 else np.stack((sample.mask, sample.mask), axis=-1)
        return {"image": sample.image, "labels": masks}

    def _collated(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        return {
            "image": padded([sample["image"].transpose(2, 0, 1) for sample in samples], fill=0),
            "labels": padded([sample["labels"].transpose(2, 0, 1) for sample in samples], fill=VOID),
            "size": torch.tensor([sample["image"].shape[:2] for sample in samples]),
            "key": torch.from_numpy(np.stack([sample["key"] for sample in samples])),
        }

    # ------------------------------------------------------------------------------------------------------- the loss

    def weight(self, batch: Batch) -> float:
        """Return the number of images."""
        return float(len(batch["image"]))

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the noise-aware loss summed over images, or another loss as a case of it; all images have one size."""
        output: SegmenterOutput = model(batch["image"] / 255, batch["key"])
        loss = self._loss(*_enlarged(output, batch["image"].shape[-2:]), batch["labels"])
        loss_sum, images = loss.loss.sum().float(), torch.full_like(loss.loss[0], len(loss.loss)).float()
        metrics: Sums = {"loss": (loss_sum.detach(), images)}
        if self.config.loss in ("noise_aware", "agreeing"):
            metrics |= {"agreeing_loss": (loss.agreeing.detach().sum(), images)}
            metrics |= {"disagreeing_loss": (loss.disagreeing.detach().sum(), images)}
            metrics |= {"disagreement": (loss.share.sum(), images)}
        return StepOutput(loss_sum, images, metrics)

    def _loss(self, logits: Tensor, cosines: Tensor, labels: Tensor) -> NoiseAwareLoss:
        """Return the loss of each image from what the network gives at the labels' size (B, C, H, W)."""
        config = self.config
        weight = _LAMBDA if config.disagreeing_weight is None else config.disagreeing_weight
        return noise_aware_loss(
            logits,
            cosines,
            *labels.unbind(dim=1),
            gamma=self._gamma,
            weight=0.0 if config.loss == "agreeing" else weight,
            detach_confidence=config.detach_confidence,
        )

    @property
    def _gamma(self) -> float:
        return _GAMMA if self.config.gamma is None else self.config.gamma

    # --------------------------------------------------------------------------------------------------- the judgment

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the cross-entropy per image and, per class, intersection and union with the truth.

        Sums over all images, on any number of ranks: the ratio is the IoU of the class over the whole split.
        """
        sums: Sums = {}
        network = getattr(model, "module", model)
        assert isinstance(network, Segmenter)
        for number, (height, width) in enumerate(batch["size"].tolist()):
            image = batch["image"][number : number + 1, :, :height, :width]
            truth = batch["labels"][number, 0, :height, :width].long()
            scores = self._scores(network, image)
            for name, (value, weight) in self._judged(scores, truth).items():
                add(sums, name, value, weight)
        return sums

    def _scores(self, network: Segmenter, image: Tensor) -> Tensor:
        """Return class probabilities of an image (1, 3, H, W) of bytes: (C, H, W)."""
        scores = network.scores(image / 255, flips=self.config.test_flips)[0]
        if not self.config.test_crf:
            return scores
        return mean_field(scores, image[0].float(), CRFSettings(**asdict(self.config.crf)))

    def _judged(self, scores: Tensor, truth: Tensor) -> Sums:
        counted, found = truth != VOID, scores.argmax(dim=0)
        tiny = torch.finfo(scores.dtype).tiny
        losses = F.nll_loss(scores.clamp(min=tiny).log()[None], truth[None], ignore_index=VOID, reduction="none")
        sums: Sums = {
            "loss": (losses.sum() / counted.sum().clamp(min=1), torch.ones_like(losses[0, 0, 0])),
            "pixel_accuracy": (((found == truth) & counted).sum().float(), counted.sum().float()),
        }
        return sums | class_ious(found, truth, counted, [BACKGROUND, *self.classes])

    def validation_report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the loss, the mean IoU over classes that occur in truth or prediction, and each class's own."""
        ious = {name: value for name, value in means.items() if name.startswith("iou_")}
        figures = {"loss": means["loss"], "miou": mean_iou(means, [BACKGROUND, *self.classes])}
        others = {name: value for name, value in means.items() if name not in (*figures, *ious)}
        return {f"validation_{name}": value for name, value in {**figures, **others, **ious}.items()}

    # ---------------------------------------------------------------------------------------------------- the results

    def illustrate(self, model: nn.Module, gallery: Gallery) -> None:
        """Show the first validation images as segmented, and training images with what is learned from their labels."""
        network = getattr(model, "module", model)
        assert isinstance(network, Segmenter)
        device = next(model.parameters()).device
        for index in range(min(self.config.shown_images, self.num_validation_samples)):
            sample = self.validation.read(index)
            found = self._scores(network, _as_batch(sample.image, device)).argmax(dim=0)
            show_prediction(sample, found, self.validation.classes, gallery)
        for index in self._shown_training():
            self._show_training(network, index, device, gallery)

    def _shown_training(self) -> list[int]:
        """Return the first training images whose attention was kept with their labels, else the first ones."""
        if self.labels is None:
            return []
        return (self.labels.shown_images() or list(range(len(self.training))))[: self.config.shown_images]

    def _show_training(self, network: Segmenter, index: int, device: torch.device, gallery: Gallery) -> None:
        assert self.labels is not None
        sample, labels = self.training.read(index), self.labels.read(index)
        image = _as_batch(sample.image, device)
        _, cosines = _enlarged(network(image / 255), image.shape[-2:])
        sigma = confidence(cosines, torch.from_numpy(labels.crf).to(device)[None], self._gamma)[0]
        show_training(sample, labels, sigma, self.labels.shown(index), self.training.classes, gallery)

    def card(self) -> ModelCard:
        """Return the model card of an exported segmentation network."""
        learned = {
            "noise_aware": "pseudo labels from boxes with the noise-aware loss",
            "agreeing": "the pixels on which two pseudo labels from boxes agree",
            "crf": "pseudo labels from boxes, those of the CRF",
            "retrieved": "pseudo labels from boxes, those by retrieval",
            "truth": "masks",
        }[self.config.loss]
        return ModelCard(
            pipeline_tag="image-segmentation",
            tags=["semantic-segmentation"],
            summary=f"A segmentation network that learned from {learned} (Oh, Kim and Ham, CVPR 2021).",
            usage=_USAGE,
            data=self._data_in_words(),
            details=self._details(),
        )


def _enlarged(output: SegmenterOutput, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return logits and cosines at the size of the image, (B, C, H, W)."""
    assert output.logits is not None
    assert output.cosines is not None
    logits, cosines = (
        F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)
        for values in (output.logits, output.cosines)
    )
    return logits, cosines


def _as_batch(image: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0)[None].to(device)
