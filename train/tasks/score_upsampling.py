"""Up-sampling of a segmentation network's score maps, class by class, guided by the image.

Kim, Ponce and Ham, Deformable kernel networks, IJCV 2021, let the filter replace the last up-sampling of a segmentation
network. Here the network is given: a filter learns to sharpen its scores.

B batch, C classes with the background, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling.joint_filter.modeling_dkn import DKNModel
from modeling.joint_filter.purpose_dkn import FilterPurpose
from modeling.segmentation.dense_crf_bap import CRFSettings, mean_field
from modeling.segmentation.facts_bap import BACKGROUND, STRIDE, VOID
from train.config.errors import ConfigError
from train.config.run import OptimConfig
from train.config.tasks.score_upsampling import ScoreUpsamplingConfig
from train.data.annotated.collection import AnnotatedImages
from train.data.annotated.scores import ScoreMaps, open_scores
from train.data.images.baselines import baselines, mask_upsampling
from train.data.images.pairs import Pair
from train.data.images.patches import min_max, patch
from train.data.split import Split
from train.tasks.joint_filter.image_batch import Images, as_batch, images_of
from train.tasks.joint_filter.network import FilterNetwork
from train.tasks.segmentation.annotated_data import SECTIONS, AnnotatedData
from train.tasks.segmentation.class_ious import class_ious, mean_iou
from train.tasks.segmentation.exhibits import show_upsampled
from train.tasks.sums import add
from train.tasks.task import Batch, Gallery, ModelCard, SampleCost, StepOutput, Sums

METHODS = ("bilinear", "joint_bilateral", "guided_filter", "crf")
REGIONS = ("", "band_")  # prefixes of metrics over the whole image, and near boundaries

_USAGE = """\
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
# image (1, 3, H, W) from 0 to 1; scores (C, 1, H, W): of each class, up-sampled bilinearly, from 0 to 1 together
sharp = model(image.expand(len(scores), -1, -1, -1), scores).output
mask = sharp[:, 0].argmax(dim=0)"""


class ScoreUpsampling(AnnotatedData, FilterNetwork):
    """The task `score_upsampling`: cross-entropy of filtered scores; `weight` counts labeled pixels.

    Batches contain `guidance` (B, 3, H, W) from 0 to 1, `input` (B, C, H, W), the scores up-sampled bilinearly and
    brought to 0 to 1 by the least and greatest of an image, `span` (B,), by which they were divided, `truth`
    (B, 1, H, W), the class of each pixel, `valid` (B, 1, H, W) bool, where it is known, and `size` (B, 2) int64, height
    and width of each image. Validation batches also have `baselines` (B, methods, regions, C, 2): intersection and
    union of each class.
    """

    def __init__(self, config: ScoreUpsamplingConfig, *, optim: OptimConfig, seed: int, micro_batch_size: int) -> None:
        self.config = config
        self._data = config.data
        self._filter = config.model
        self._optim = optim
        self._seed = seed
        self._micro_batch_size = micro_batch_size
        self._baselines: dict[int, np.ndarray] = {}  # by validation image

    # ------------------------------------------------------------------------------------------------------- the data

    @cached_property
    def training_scores(self) -> ScoreMaps:
        """The score maps of the training images."""
        return self._scores_of(self.training)

    @cached_property
    def validation_scores(self) -> ScoreMaps:
        """The score maps of the validation images."""
        return self._scores_of(self.validation)

    def _scores_of(self, images: AnnotatedImages) -> ScoreMaps:
        data = self.config.data
        return open_scores(data.scores, images, stride=data.stride, noise=data.noise, seed=data.seed)

    def _fingerprints(self) -> Iterator[str]:
        yield from super()._fingerprints()
        yield self.training_scores.fingerprint
        yield self.validation_scores.fingerprint

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """What all tasks with annotated images record, and where the scores come from."""
        return {**super().data_facts, "scores": self.config.data.scores or "made from the masks"}

    def _split_faults(self, split: Split, images: AnnotatedImages) -> Iterator[str]:
        yield from super()._split_faults(split, images)
        if not images.have_masks:
            without = next(i for i in range(len(images)) if not images.has_mask(i))
            yield f"{SECTIONS[split]}: {images.name(without)} has no mask in SegmentationClass, which this task needs"
        crop = self.config.data.crop
        if split == "training" and crop is not None:
            small = next((i for i in range(len(images)) if min(images.size(i)) < crop), None)
            if small is not None:
                height, width = images.size(small)
                yield (
                    f"task.data.crop: {crop} exceeds the size of {images.name(small)} ({height} x {width} pixels); "
                    f"lower it"
                )
        try:
            maps: ScoreMaps = getattr(self, f"{split}_scores")
            yield from maps.faults()
        except ConfigError as error:
            yield from error.faults

    def batch(self, sample_ids: np.ndarray, *, split: Split, step: int) -> Batch:
        """Read images and scores; all randomness in training is a function of (seed, step, id)."""
        if split == "validation":
            return as_batch([self._validation_sample(int(i)) for i in sample_ids])
        return as_batch([self._training_sample(int(i), step) for i in sample_ids])

    def _training_sample(self, index: int, step: int) -> dict[str, np.ndarray]:
        data = self.config.data
        pair, span = _pair(self.training, self.training_scores, index)
        return _sample(patch(pair, crop=data.crop, flips=data.flips, seed=data.seed, step=step, sample_id=index), span)

    def _validation_sample(self, index: int) -> dict[str, np.ndarray]:
        pair, span = _pair(self.validation, self.validation_scores, index)
        sample = _sample(pair, span)
        if not self.config.baselines:
            return sample
        if index not in self._baselines:
            cells = self.validation_scores.read(index).shape[1]
            self._baselines[index] = self._judged_baselines(sample, scale=round(pair.valid.shape[0] / cells))
        return sample | {"baselines": self._baselines[index]}

    # ------------------------------------------------------------------------------------------------------- the loss

    def weight(self, batch: Batch) -> float:
        """Return the number of labeled pixels."""
        return float(batch["valid"].sum())

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed cross-entropy over labeled pixels; all images have one size."""
        logits = filtered_scores(model, batch["guidance"], batch["input"]) * batch["span"].view(-1, 1, 1, 1)
        loss_sum = _cross_entropy(logits, batch["truth"], batch["valid"])
        weight = batch["valid"].sum().float()
        return StepOutput(loss_sum, weight, {"loss": (loss_sum.detach(), weight)})

    # --------------------------------------------------------------------------------------------------- the judgment

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the cross-entropy and, per class, intersection and union with the truth, in the image and the band."""
        sums: Sums = {}
        for image, span in zip(images_of(batch), batch["span"], strict=True):
            logits = filtered_scores(model, image.guidance, image.input) * span
            add(sums, "loss", _cross_entropy(logits, image.truth, image.valid), image.valid.sum())
            for name, (value, weight) in self._judged(logits[0].argmax(dim=0), image).items():
                add(sums, name, value, weight)
        if self.config.baselines:
            counts = batch["baselines"].sum(dim=0)
            for method, of_method in zip(METHODS, counts, strict=True):
                for name, (both, either) in zip(self._names(), of_method.flatten(0, 1), strict=True):
                    add(sums, f"{method}_{name}", both, either)
        return sums

    def _judged(self, found: Tensor, image: Images) -> Sums:
        """Return intersection and union of each class in both regions, by the names of their metrics."""
        truth, labeled = image.truth[0, 0].long(), image.valid[0, 0]
        near = labeled & boundary_band(truth, labeled, self.config.band)
        sums: Sums = {}
        for prefix, counted in zip(REGIONS, (labeled, near), strict=True):
            sums |= class_ious(found, truth, counted, self._all_classes, prefix=prefix)
        return sums

    def _names(self) -> list[str]:
        """Return the names of the metrics that `_judged` gives, in their order."""
        nothing = torch.zeros(1, 1, dtype=torch.long)
        return [
            name
            for prefix in REGIONS
            for name in class_ious(nothing, nothing, nothing.bool(), self._all_classes, prefix=prefix)
        ]

    @property
    def _all_classes(self) -> list[str]:
        return [BACKGROUND, *self.classes]

    def _judged_baselines(self, sample: Mapping[str, np.ndarray], *, scale: int) -> np.ndarray:
        """Return intersection and union of each class for METHODS, float32 (methods, regions, C, 2)."""
        image = next(images_of(as_batch([sample])))
        found = self._baseline_labels(image, float(sample["span"]), scale=scale)
        counts = [[torch.stack(pair) for pair in self._judged(found[method], image).values()] for method in METHODS]
        return torch.stack([torch.stack(each) for each in counts]).unflatten(1, (len(REGIONS), -1)).numpy()

    def _baseline_labels(self, image: Images, span: float, *, scale: int) -> dict[str, Tensor]:
        """Return the labels (H, W) that each other method gives."""
        guidance, scores = (x[0].permute(1, 2, 0).numpy() for x in (image.guidance, image.input))
        known = np.ones(scores.shape[:2], bool)
        filters = mask_upsampling(scale)
        by_class = [baselines(guidance, scores[..., c], known, filters) for c in range(scores.shape[2])]
        joint = {
            name: torch.from_numpy(np.stack([each[name] for each in by_class])).argmax(dim=0) for name in by_class[0]
        }
        probabilities = (image.input[0] * span).softmax(dim=0)
        crf = mean_field(probabilities, image.guidance[0] * 255, CRFSettings(**asdict(self.config.crf)))
        return {"bilinear": image.input[0].argmax(dim=0), **joint, "crf": crf.argmax(dim=0)}

    def validation_report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the loss, the mean IoUs in the image and the band, those of other methods, and each class's own."""
        figures = {"loss": means["loss"]}
        for method in ("", *(f"{name}_" for name in METHODS if self.config.baselines)):
            for prefix in REGIONS:
                figures[f"{method}{prefix}miou"] = mean_iou(means, self._all_classes, prefix=f"{method}{prefix}")
        of_classes = {name: value for name, value in means.items() if name.startswith("iou_")}
        return {f"validation_{name}": value for name, value in {**figures, **of_classes}.items()}

    # ---------------------------------------------------------------------------------------------------- the results

    def illustrate(self, model: nn.Module, gallery: Gallery) -> None:
        """Show the first validation images: up-sampled bilinearly, and by the filter."""
        device = next(model.parameters()).device
        for index in range(min(self.config.shown_images, self.num_validation_samples)):
            batch = as_batch([_sample(*_pair(self.validation, self.validation_scores, index))])
            image = next(images_of({key: value.to(device) for key, value in batch.items()}))
            found = filtered_scores(model, image.guidance, image.input)[0].argmax(dim=0)
            before = image.input[0].argmax(dim=0)
            show_upsampled(self.validation.read(index), before, found, self.validation.classes, gallery)

    def cost(self, model: nn.Module) -> SampleCost:
        """Return the operations per image if all have one size; backward costs twice as much as forward."""
        assert isinstance(model, DKNModel)
        crop = self.config.data.crop
        sizes = {self.training.size(i) for i in range(len(self.training))} if crop is None else {(crop, crop)}
        height, width = sizes.pop()
        per_image = model.flops_per_pixel() * height * width * len(self._all_classes)
        return SampleCost(tokens=None, flops=None if sizes else 3 * per_image)

    def _purpose(self) -> FilterPurpose:
        scale = STRIDE if self.config.data.stride is None else self.config.data.stride
        return FilterPurpose(task=self.config.kind, scale=scale, invalid="none")

    def card(self) -> ModelCard:
        """Return the model card of an exported filter."""
        data = self.config.data
        paths = ", ".join(dict.fromkeys(source.path for source in (*data.sources, *data.validation_sources)))
        scores = "made from masks" if data.scores is None else f"of {data.scores}"
        model = self.config.model
        return ModelCard(
            pipeline_tag="image-segmentation",
            tags=["dkn", "joint-image-filtering", "semantic-segmentation"],
            summary=f"{model.architecture.upper()}, a joint image filter that up-samples score maps of a segmentation "
            f"network, class by class, guided by the image (Kim, Ponce and Ham, IJCV 2021).",
            usage=_USAGE,
            data=f"{paths}; scores {scores}; classes {', '.join(self.classes)}",
        )


# ---------------------------------------------------------------------------------------------------------- functions


def filtered_scores(model: nn.Module, guidance: Tensor, scores: Tensor) -> Tensor:
    """Return score maps (B, C, H, W), each filtered with the same guidance (B, 3, H, W); gradients reach them."""
    classes = scores.shape[1]
    output = model(guidance.repeat_interleave(classes, dim=0), scores.flatten(0, 1)[:, None]).output
    return output.unflatten(0, (-1, classes))[:, :, 0]


def boundary_band(truth: Tensor, labeled: Tensor, reach: int) -> Tensor:
    """Return the pixels near boundaries between classes, (H, W) bool: those whose distance is at most `reach`.

    A pixel beside a boundary has distance 1; of both axes the greater distance counts. Judging near boundaries alone
    follows Kohli, Ladicky and Torr, Robust higher order potentials, IJCV 2009.

    Args:
        truth: (H, W), the class of each pixel.
        labeled: (H, W) bool, where it is known; there is no boundary beside other pixels.
        reach: In pixels.
    """
    beside = torch.zeros_like(labeled)
    for one, other in (((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
                       ((slice(None), slice(1, None)), (slice(None), slice(None, -1)))):  # fmt: skip
        differs = (truth[one] != truth[other]) & labeled[one] & labeled[other]
        beside[one] |= differs
        beside[other] |= differs
    side = 2 * reach - 1
    return F.max_pool2d(beside[None].float(), side, stride=1, padding=side // 2)[0] > 0


def _pair(images: AnnotatedImages, maps: ScoreMaps, index: int) -> tuple[Pair, float]:
    """Return an image with its scores, from 0 to 1, and its mask as a pair; and what the scores were divided by."""
    sample = images.read(index)
    assert sample.mask is not None
    coarse = torch.from_numpy(maps.read(index))[None]
    scores = F.interpolate(coarse, size=sample.mask.shape, mode="bilinear", align_corners=False)[0]
    scores = np.ascontiguousarray(scores.permute(1, 2, 0).numpy())
    labeled = sample.mask != VOID
    span = min_max(scores, np.ones_like(labeled))
    target = np.concatenate((span.to_unit(scores), sample.mask[..., None].astype(np.float32)), axis=2)
    guidance = sample.image.astype(np.float32) / 255
    return Pair(sample.name, guidance, target, labeled, units_per_value=1.0), span.width


def _sample(pair: Pair, span: float) -> dict[str, np.ndarray]:
    """Return the sample of a pair from `_pair`."""
    scores, truth = pair.target[..., :-1], pair.target[..., -1:]
    return {
        "guidance": pair.guidance,
        "input": scores,
        "truth": truth,
        "valid": pair.valid,
        "span": np.asarray(span, np.float32),
    }


def _cross_entropy(logits: Tensor, truth: Tensor, labeled: Tensor) -> Tensor:
    """Return the cross-entropy summed over labeled pixels, () fp32."""
    targets = torch.where(labeled, truth.long(), VOID)[:, 0]
    return F.cross_entropy(logits.float(), targets, ignore_index=VOID, reduction="sum")
