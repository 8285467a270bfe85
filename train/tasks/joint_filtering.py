"""Common base of the tasks that train a joint image filter: network, image pairs, loss.

B batch, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from analysis.measure.activations import Site, sites_of_any
from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.image_processing_dkn import DKNImageProcessor
from modeling.joint_filter.modeling_dkn import DKNModel, DKNOutput
from train.config.errors import ConfigError
from train.config.run import OptimConfig
from train.config.tasks.joint_filter import DepthUpsamplingConfig, PairSourceConfig, TextureRemovalConfig
from train.data.images.pairs import Pairs, open_pairs
from train.data.images.procedural import KINDS
from train.data.split import Split
from train.tasks.exhibits import Exhibit, show
from train.tasks.image_batch import Images, as_batch, images_of
from train.tasks.task import Batch, Gallery, ModelCard, ParameterGroup, SampleCost, StepOutput, Task

Config = TypeVar("Config", DepthUpsamplingConfig, TextureRemovalConfig)

SECTIONS: dict[Split, str] = {"training": "task.data.sources", "validation": "task.data.validation_sources"}

LOADING = """\
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
"""
ON_FILES = "\n# Files, or folders of them, in a checkout of periln: python -m train.filter FOLDER GUIDANCE TARGET OUT"


class JointFiltering(Task, Generic[Config]):
    """A task that trains a filter on the mean absolute error over valid pixels; `weight` counts valid pixels.

    Batches contain `guidance` (B, 3, H, W), `input` and `truth` (B, C, H, W), `valid` (B, 1, H, W) bool and `size`
    (B, 2) int64, height and width of each image.
    """

    metric_names: ClassVar[tuple[str, ...]]  # metrics of the filter itself, in reporting order

    def __init__(self, config: Config, *, optim: OptimConfig, seed: int, micro_batch_size: int) -> None:
        self.config: Config = config
        self._optim = optim
        self._seed = seed
        self._micro_batch_size = micro_batch_size
        self._baselines: dict[int, np.ndarray] = {}  # metrics of other methods by validation pair

    # ------------------------------------------------------------------------------------------------------- the data

    @cached_property
    def training(self) -> Pairs:
        """The training pairs."""
        return open_pairs(self.config.data.sources, path=SECTIONS["training"])

    @cached_property
    def validation(self) -> Pairs:
        """The validation pairs."""
        return open_pairs(self.config.data.validation_sources, path=SECTIONS["validation"])

    @property
    def num_training_samples(self) -> int:
        """Number of training pairs."""
        return len(self.training)

    @property
    def num_validation_samples(self) -> int:
        """Number of validation pairs."""
        return len(self.validation)

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
        return [*self._size_faults(split, pairs), *self._channel_faults(split, pairs)]

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

    @abstractmethod
    def _training_sample(self, index: int, step: int) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def _validation_sample(self, index: int) -> dict[str, np.ndarray]: ...

    # ---------------------------------------------------------------------------------------------------- the network

    def build_model(self) -> DKNModel:
        """Return the filter, initialized from the run's seed."""
        torch.manual_seed(self._seed)
        return DKNModel(DKNConfig(**asdict(self.config.model)))

    def describe(self, model: nn.Module) -> dict[str, str]:
        """Return the operations per pixel."""
        assert isinstance(model, DKNModel)
        return {"forward FLOPs per pixel": f"{model.flops_per_pixel():,.0f}"}

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Group parameters: convolution kernels have weight decay, norms and biases do not."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        kernels = {name: parameter for name, parameter in named.items() if parameter.ndim > 1}
        others = {name: parameter for name, parameter in named.items() if parameter.ndim <= 1}
        decay = self._optim.weight_decay
        return [ParameterGroup("matrix", kernels, decay), ParameterGroup("norm_or_bias", others, 0.0)]

    def probe_sites(self, model: nn.Module) -> list[Site]:
        """Return the outputs of every convolution and norm."""
        assert isinstance(model, DKNModel)
        return sites_of_any(model.kernels)

    def cost(self, model: nn.Module) -> SampleCost:
        """Return the operations per pair if all have one size; backward costs twice as much as forward."""
        assert isinstance(model, DKNModel)
        crop = self.config.data.crop
        sizes = {self.training.size(i) for i in range(len(self.training))} if crop is None else {(crop, crop)}
        height, width = sizes.pop()
        return SampleCost(tokens=None, flops=None if sizes else 3 * model.flops_per_pixel() * height * width)

    def save_assets(self, folder: Path) -> None:
        """Save the image processor, using the training data's definition of missing pixels."""
        DKNImageProcessor(invalid=_missing_value(self.config.data.sources)).save_pretrained(folder)

    # ------------------------------------------------------------------------------------------------------- the loss

    def weight(self, batch: Batch) -> float:
        """Return the number of valid pixels."""
        return float(batch["valid"].sum())

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed absolute error over valid pixels; all images have one size."""
        output = model(batch["guidance"], batch["input"]).output
        loss_sum = absolute_error(output, batch["truth"], batch["valid"])
        weight = batch["valid"].sum().float()
        return StepOutput(loss_sum, weight, {"loss": (loss_sum.detach(), weight)})

    def validation_report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of the filter itself, followed by those of other methods and other guidances."""
        others = (name for name in means if name not in self.metric_names)
        return {f"validation_{name}": means[name] for name in (*self.metric_names, *others)}

    # --------------------------------------------------------------------------------------------- exhibits

    @abstractmethod
    def _filtered(self, model: nn.Module, image: Images) -> tuple[Tensor, DKNOutput]:
        """Return an image filtered for this task, (1, C, H, W), and the output of the last pass."""

    def _units(self, batch: Batch) -> tuple[float, str | None]:
        """Return the units per error of 1.0 in a batch of one image, and the name of the unit."""
        return 1.0, None

    def illustrate(self, model: nn.Module, gallery: Gallery) -> None:
        """Show the first validation images."""
        device = next(model.parameters()).device
        for index in range(min(self.config.shown_images, self.num_validation_samples)):
            batch = as_batch([self._validation_sample(index)])
            image = next(images_of({key: value.to(device) for key, value in batch.items()}))
            output, kernels = self._filtered(model, image)
            exhibit = Exhibit(self.validation.name(index), image, output, kernels, *self._units(batch))
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
