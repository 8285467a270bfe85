"""Common base of the tasks that train a joint image filter: network, image pairs, loss, evaluation beside baselines.

B batch, H height, W width, C channels, M other methods, K scores of an image.

A task says how a pair becomes an example of training and of validation, how other methods filter it, and how an output
is scored; see docs/guides/add-a-filter-task.md.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from modeling.joint_filter.modeling_dkn import DKNModel, DKNOutput
from modeling.joint_filter.purpose_dkn import FilterPurpose
from train.config.errors import ConfigError
from train.config.run import OptimConfig
from train.config.tasks.joint_filter import JointFilterConfig, PairSourceConfig
from train.data.images.pairs import Pair, Pairs, open_pairs
from train.data.images.patches import patch
from train.data.images.procedural import KINDS
from train.data.images.validation_sets import by_label, labels
from train.data.split import Split
from train.tasks.joint_filter.examples import Example, Noise, input_faults
from train.tasks.joint_filter.exhibits import Exhibit, show
from train.tasks.joint_filter.image_batch import Images, as_batch, as_planes, images_of, training_sample, with_input
from train.tasks.joint_filter.network import FilterNetwork
from train.tasks.joint_filter.sets import ValidationSets, scores_of
from train.tasks.sums import add, add_judged
from train.tasks.task import Batch, Gallery, ModelCard, SampleCost, StepOutput, Sums

Config = TypeVar("Config", bound=JointFilterConfig)

SECTIONS: dict[Split, str] = {"training": "task.data.sources", "validation": "task.data.validation_sources"}

LOADING = """\
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
"""
ON_FILES = "\n# Files, or folders of them, in a checkout of periln: python -m train.filter FOLDER GUIDANCE TARGET OUT"


_TRAINING_NOISE = 0x40153  # random streams, separate from that of crops
_VALIDATION_NOISE = 0x40154


class JointFiltering(FilterNetwork, Generic[Config]):
    """A task that trains a filter, by default on the mean absolute error over valid pixels; `weight` counts these.

    Batches contain `guidance` (B, 3, H, W), `input` and `truth` (B, C, H, W), `valid` (B, 1, H, W) bool and `size`
    (B, 2) int64, height and width of each image. Those of validation also contain `units` (B,), the units of an error
    of 1.0, `set` (B,) int64 and `baselines` (B, M * K), the scores of `methods`.

    Validation samples are numbered by level of noise, then by label of their source.
    """

    score_names: ClassVar[tuple[str, ...]]  # of an image, in reporting order
    methods: ClassVar[tuple[str, ...]]  # other methods to compare with

    def __init__(self, config: Config, *, optim: OptimConfig, seed: int, micro_batch_size: int) -> None:
        self.config: Config = config
        self._filter = config.model
        self._optim = optim
        self._seed = seed
        self._micro_batch_size = micro_batch_size
        self._baselines: dict[int, np.ndarray] = {}  # scores of other methods by validation sample

    # ------------------------------------------------------------------------------------- to be said by a task

    @abstractmethod
    def _training_example(self, pair: Pair, noise: Noise) -> Example:
        """Return what the network is trained on."""

    @abstractmethod
    def _validation_example(self, pair: Pair, noise: Noise) -> Example:
        """Return what the network is judged by."""

    @abstractmethod
    def _other_outputs(self, example: Example, noise: Noise) -> Mapping[str, np.ndarray]:
        """Return the image filtered by `methods`, which may know its noise, in the shape of the truth."""

    @abstractmethod
    def _scores(self, output: Tensor, image: Images, units: Tensor) -> Tensor:
        """Return the scores of an output (1, C, H, W), (K,) fp32."""

    def _judged(self, image: Images) -> Tensor:
        """Return which scores an image has, (K,) fp32, 0 or 1; by default all if it has a pixel inside the border."""
        return self._inside(image.valid).any().float().expand(len(self.score_names))

    def _loss(self, output: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Return the loss of an output (B, C, H, W), summed over its channels and what `weight` counts, () fp32."""
        return absolute_error(output, truth, valid)

    @property
    def _other_guidances(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Functions of the guidance (1, 3, H, W) whose results are also evaluated, by name."""
        return {}

    def _metrics(self, scores: dict[str, float], *, label: str | None) -> dict[str, float]:
        """Return the metrics to report from the mean scores of a method, `loss` among those of the filter itself."""
        return scores

    @property
    def _iterations(self) -> int:
        """How often the filter is applied to its own output in validation."""
        return 1

    @property
    def _input_scale(self) -> int:
        """Factor by which inputs are smaller than the target."""
        return 1

    @property
    def _other_noise(self) -> tuple[float, ...]:
        """Further levels of noise in validation inputs."""
        return ()

    # ------------------------------------------------------------------------------------------------------- the data

    @cached_property
    def training(self) -> Pairs:
        """The training pairs."""
        return open_pairs(self.config.data.sources, path=SECTIONS["training"])

    @cached_property
    def validation(self) -> Pairs:
        """The validation pairs."""
        return open_pairs(by_label(self.config.data.validation_sources), path=SECTIONS["validation"])

    @cached_property
    def _sets(self) -> ValidationSets:
        """The sets of validation samples."""
        data = self.config.data
        return ValidationSets(
            data.validation_sources, self.validation.counts, (data.validation_noise, *self._other_noise)
        )

    def _unit(self, index: int) -> str | None:
        """Return the unit of the errors of a validation pair."""
        ends = np.cumsum(self.validation.counts)
        source = by_label(self.config.data.validation_sources)[int(np.searchsorted(ends, index, side="right"))]
        return source.unit or self.config.data.unit

    def _unit_of_error(self, metric: str) -> str | None:
        """Return the unit of a metric of errors: that of its label's sources, if they have one."""
        sources = by_label(self.config.data.validation_sources)
        units = (source.unit for source, label in zip(sources, labels(sources), strict=True) if f"_{label}_" in metric)
        return next((unit for unit in units if unit is not None), self.config.data.unit)

    @property
    def _has_one_unit(self) -> bool:
        """Whether errors of all validation sources are in one unit, so that their mean has a meaning."""
        return len({source.unit or self.config.data.unit for source in self.config.data.validation_sources}) == 1

    @property
    def num_training_samples(self) -> int:
        """Number of training pairs."""
        return len(self.training)

    @property
    def num_validation_samples(self) -> int:
        """Number of validation pairs, times the levels of noise."""
        return len(self.validation) * (1 + len(self._other_noise))

    @property
    def validation_sets(self) -> Sequence[int]:
        """Sizes of the sets of validation samples."""
        return self._sets.sizes

    @property
    def data_fingerprint(self) -> str:
        """A hash of every pair of both splits."""
        both = f"{self.training.fingerprint} {self.validation.fingerprint}"
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """The numbers of pairs, and the names of the first 100 validation pairs."""
        names = [self.validation.name(i) for i in range(min(len(self.validation), 100))]
        return {"training_pairs": len(self.training), "validation_pairs": len(self.validation), "validation": names}

    def check(self) -> list[str]:
        """Check that all images exist and are suitable for training.

        Raises:
            ConfigError: Images are missing, smaller than the crop, or of different sizes in one batch.
        """
        self._require("training", "validation")
        return []

    def _require(self, *splits: Split) -> None:
        faults = [fault for split in splits for fault in self._faults(split)]
        if faults:
            raise ConfigError(faults)

    def _faults(self, split: Split) -> list[str]:
        try:
            pairs: Pairs = getattr(self, split)
        except ConfigError as error:
            return error.faults
        inputs = input_faults(pairs, self._input_scale, section=SECTIONS[split], remedy=self._input_remedy)
        return [*self._size_faults(split, pairs), *self._channel_faults(split, pairs), *inputs]

    @property
    def _input_remedy(self) -> str:
        """What to do about an input of another size."""
        return "this task takes inputs of the target's size; use such inputs"

    def _size_faults(self, split: Split, pairs: Pairs) -> Iterator[str]:
        if split == "validation":  # whole images, one by one
            yield from self._pixel_faults(pairs)
            return
        sizes = {pairs.size(i): pairs.name(i) for i in range(len(pairs))}
        crop = self.config.data.crop
        for size, name in sizes.items():
            if crop is not None and min(size) < crop:
                yield f"task.data.crop: {crop} exceeds the size of {name} ({size[0]} x {size[1]}); lower it"
                return
        if crop is None and len(sizes) > 1 and self._micro_batch_size > 1:
            yield (
                f"micro_batch_size: {self._micro_batch_size} images of different sizes cannot form a batch; write 1, "
                f"or set task.data.crop"
            )

    def _pixel_faults(self, pairs: Pairs) -> Iterator[str]:
        pixel = self.config.shown_pixel
        for i in range(min(self.config.shown_images, len(pairs)) if pixel is not None else 0):
            (height, width), name = pairs.size(i), pairs.name(i)
            if pixel is not None and (pixel[0] >= height or pixel[1] >= width):
                yield (
                    f"task.shown_pixel: {list(pixel)} is outside {name} ({height} x {width} pixels); write a row below "
                    f"{height} and a column below {width}"
                )
                return

    def _channel_faults(self, split: Split, pairs: Pairs) -> Iterator[str]:
        for i in range(len(pairs)):
            if pairs.channels(i) != 1:
                yield (
                    f"{SECTIONS[split]}: the target {pairs.name(i)} has {pairs.channels(i)} channels; "
                    f"this task requires single-channel maps, such as depth"
                )
                return

    def open_data(self) -> None:
        """Open both splits and check them."""
        self.check()
        _ = self.data_fingerprint

    def open_validation(self) -> None:
        """Open and check the validation pairs; the training pairs need not exist."""
        self._require("validation")

    def batch(self, sample_ids: np.ndarray, *, split: Split, step: int) -> Batch:
        """Read pairs and produce their inputs; all randomness in training is a function of (seed, step, id)."""
        if split == "validation":
            return as_batch([self._validation_sample(int(i)) for i in sample_ids])
        return as_batch([self._training_sample(int(i), step) for i in sample_ids])

    def _training_sample(self, index: int, step: int) -> dict[str, np.ndarray]:
        data = self.config.data
        noise = Noise(data.noise, (_TRAINING_NOISE, data.seed, step, index))
        example = self._training_example(self.training.read(index), noise)
        whole = with_input(example.pair, example.image)
        return training_sample(
            patch(whole, crop=data.crop, flips=data.flips, seed=data.seed, step=step, sample_id=index)
        )

    def _validation_sample(self, sample: int) -> dict[str, np.ndarray]:
        number, index, deviation = self._sets.of(sample)
        noise = Noise(deviation, (_VALIDATION_NOISE, self.config.data.seed, index))
        example = self._validation_example(self.validation.read(index), noise)
        arrays = {**example.arrays(), "units": np.float32(example.units), "set": np.int64(number)}
        return arrays | ({"baselines": self._baseline_scores(sample, example, noise)} if self.config.baselines else {})

    def _baseline_scores(self, sample: int, example: Example, noise: Noise) -> np.ndarray:
        """Return the scores of other methods, (M * K,), computed once per sample."""
        if sample not in self._baselines:
            outputs = self._other_outputs(example, noise)
            image = next(images_of(as_batch([example.arrays()])))
            units = torch.tensor(example.units, dtype=torch.float32)
            scores = [self._scores(as_planes(outputs[name]), image, units) for name in self.methods]
            self._baselines[sample] = torch.cat(scores).numpy()
        return self._baselines[sample]

    # ---------------------------------------------------------------------------------------------------- the network

    def cost(self, model: nn.Module) -> SampleCost:
        """Return the operations per pair if all have one size; backward costs twice as much as forward."""
        assert isinstance(model, DKNModel)
        crop = self.config.data.crop
        sizes = {self.training.size(i) for i in range(len(self.training))} if crop is None else {(crop, crop)}
        height, width = sizes.pop()
        return SampleCost(tokens=None, flops=None if sizes else 3 * model.flops_per_pixel() * height * width)

    def _purpose(self) -> FilterPurpose:
        data = self.config.data
        factors = {source.units_per_value for source in data.validation_sources}  # training has no use for it
        return FilterPurpose(
            task=self.config.kind,
            scale=self._input_scale,
            noise=data.noise or None,
            unit=data.unit,
            units_per_value=factors.pop() if len(factors) == 1 else None,
            invalid=self._invalid,
        )

    @property
    def _invalid(self) -> Literal["zero", "none"] | float:
        """Which pixels of a target are missing when the filter is used: those that are so in the training data."""
        return _missing_value(self.config.data.sources)

    # ------------------------------------------------------------------------------------------------------- the loss

    def weight(self, batch: Batch) -> float:
        """Return the number of valid pixels."""
        return float(batch["valid"].sum())

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed loss; all images have one size."""
        output = model(batch["guidance"], batch["input"]).output
        loss_sum = self._loss(output, batch["truth"], batch["valid"])
        weight = batch["valid"].sum().float()
        return StepOutput(loss_sum, weight, {"loss": (loss_sum.detach(), weight)})

    # -------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the loss per valid pixel and the scores per image, of the filter and of other methods; also by set.

        An image has weight 0 in a score that it does not have, for every method.
        """
        sums: Sums = {}
        judged = torch.stack([self._judged(image) for image in images_of(batch)])  # (B, K)
        for image, units, counts in zip(images_of(batch), batch["units"], judged, strict=True):
            output, _ = self._filtered(model, image)
            pixels = image.valid.sum() * output.shape[1]
            add(sums, "loss", self._loss(output, image.truth, image.valid), pixels)
            self._add_scores(sums, "", self._scores(output, image, units)[None], counts[None])
            for name, changed in self._other_guidances.items():
                other, _ = self._filtered(model, image._replace(guidance=changed(image.guidance)))
                self._add_scores(sums, f"{name}_guidance_", self._scores(other, image, units)[None], counts[None])
        if self.config.baselines:
            scores = batch["baselines"].unflatten(1, (len(self.methods), -1))  # (B, M, K)
            for name, of_method in zip(self.methods, scores.unbind(1), strict=True):
                self._add_scores(sums, f"{name}_", of_method, judged)
        return self._sets.divided(sums, int(batch["set"][0]))

    def _add_scores(self, sums: Sums, method: str, scores: Tensor, judged: Tensor) -> None:
        for name, values, counts in zip(self.score_names, scores.unbind(1), judged.unbind(1), strict=True):
            add_judged(sums, f"{method}{name}", values, counts)

    def validation_report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of the filter itself, followed by those of other guidances and other methods.

        Each is reported for all sources and, if there are several, for each label, as validation_METHOD_LABEL_METRIC.
        """
        others = [f"{name}_guidance" for name in self._other_guidances]
        report: dict[str, float] = {}
        for method in ("", *others, *self.methods):
            for label in (None, *self._sets.names):
                scores = scores_of(means, ("loss", *self.score_names), method=method, label=label)
                for name, value in self._metrics(scores, label=label).items():
                    report["_".join(filter(None, ("validation", method, label, name)))] = value
        return report

    def _inside(self, valid: Tensor) -> Tensor:
        """Return which pixels are judged, (1, 1, H, W) bool: valid ones without the border, where that leaves any."""
        inside, border = valid.clone(), self.config.border
        for axis, size in ((2, valid.shape[2]), (3, valid.shape[3])):
            if border and size > 2 * border:
                inside.narrow(axis, 0, border).fill_(False)
                inside.narrow(axis, size - border, border).fill_(False)
        return inside

    # --------------------------------------------------------------------------------------------- exhibits

    def _filtered(self, model: nn.Module, image: Images) -> tuple[Tensor, DKNOutput]:
        """Return an image filtered channel by channel, (1, C, H, W), and the output of the last pass."""
        channels = image.input.shape[1]
        guidance, filtered = image.guidance.expand(channels, -1, -1, -1), image.input.transpose(0, 1)
        output = DKNOutput()
        for _ in range(self._iterations):
            output = model(guidance, filtered)
            filtered = output.output
        return filtered.transpose(0, 1), output

    def illustrate(self, model: nn.Module, gallery: Gallery) -> None:
        """Show the first validation images."""
        device = next(model.parameters()).device
        for index in range(min(self.config.shown_images, len(self.validation))):
            batch = as_batch([self._validation_sample(index)])
            image = next(images_of({key: value.to(device) for key, value in batch.items()}))
            output, kernels = self._filtered(model, image)
            exhibit = Exhibit(
                self.validation.name(index), image, output, kernels, float(batch["units"][0]), self._unit(index)
            )
            show(exhibit, model, gallery, pixel=self.config.shown_pixel)

    def _card(self, *, form: str = "", purpose: str, usage: str) -> ModelCard:
        """Return the model card.

        Args:
            form: Addition to the description of the filter's shape.
            purpose: What the filter was trained to do, with any further sentences.
            usage: Code that uses the loaded `model`.
        """
        model = self.config.model
        sources = [*self.config.data.sources, *self.config.data.validation_sources]
        return ModelCard(
            pipeline_tag="image-to-image",
            tags=["dkn", "joint-image-filtering"],
            summary=f"{model.architecture.upper()}, a joint image filter ({model.kernel_size} x {model.kernel_size} "
            f"samples in a window of {model.window_size} pixels{form}), trained to {purpose}",
            usage=LOADING + usage + ON_FILES,
            data=", ".join(dict.fromkeys(source.path for source in sources)),
        )


def _missing_value(sources: Sequence[PairSourceConfig]) -> Literal["zero", "none"] | float:
    """Derive DKNImageProcessor's `invalid` from the `missing` settings of the training sources.

    Procedural scenes have no missing pixels and are disregarded; without other sources the result is `zero`. If sources
    disagree, zero is missing if it is in any source: a measured zero is then filled in and restored afterwards, whereas
    a missing pixel treated as a value would corrupt its surroundings. Otherwise the first number set by any source is
    used, or `none` if all are null. Only the settings count, not the data: NYU's arrays of normalized depth, whose
    zeros are read as values, are treated according to their setting.
    """
    settings = [source.missing for source in sources if source.path not in KINDS]
    numbers = [missing for missing in settings if missing is not None]
    if 0 in numbers or not settings:
        return "zero"
    return numbers[0] if numbers else "none"


def absolute_error(output: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the sum of absolute differences over valid pixels, () fp32; other pixels may have any value."""
    return torch.where(valid, output.float() - truth, 0.0).abs().sum()


def noise_in_words(deviation: float) -> str:
    """Return a sentence for a model card about the noise in the inputs of training."""
    if deviation:
        return f"Its inputs in training had noise with a standard deviation of {deviation:g} of the range."
    return "Its inputs in training had no noise, and it sharpens noise; for noisy inputs, train with task.data.noise."
