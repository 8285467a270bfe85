"""What the tasks that train a joint image filter share: the network, pairs of images, the loss.

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
from train.tasks.task import Batch, Gallery, ModelCard, ParameterGroup, SampleCost, StepOutput, Sums, Task

Config = TypeVar("Config", DepthUpsamplingConfig, TextureRemovalConfig)

SECTIONS: dict[Split, str] = {"training": "task.data.sources", "validation": "task.data.validation_sources"}

_LOADING = """\
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
"""


class JointFiltering(Task, Generic[Config]):
    """A task that trains a filter by the mean absolute error over valid pixels; `weight` counts these.

    Its batches hold `guidance` (B, 3, H, W), `input` and `truth` (B, C, H, W), `valid` (B, 1, H, W) bool and `size`
    (B, 2) int64, height and width of each image.
    """

    figures: ClassVar[tuple[str, ...]]  # of the filter itself, in the order in which they are told

    def __init__(self, config: Config, *, optim: OptimConfig, seed: int, micro_batch_size: int) -> None:
        self.config: Config = config
        self._optim = optim
        self._seed = seed
        self._micro_batch_size = micro_batch_size
        self._others: dict[int, np.ndarray] = {}  # errors of other methods on a validation pair

    # ------------------------------------------------------------------------------------------------------- the data

    @cached_property
    def training(self) -> Pairs:
        """The pairs to train on."""
        return open_pairs(self.config.data.sources, path=SECTIONS["training"])

    @cached_property
    def validation(self) -> Pairs:
        """The pairs to be judged by."""
        return open_pairs(self.config.data.validation_sources, path=SECTIONS["validation"])

    @property
    def num_training_samples(self) -> int:
        """Pairs to train on."""
        return len(self.training)

    @property
    def num_validation_samples(self) -> int:
        """Pairs to be judged by."""
        return len(self.validation)

    @property
    def data_fingerprint(self) -> str:
        """A hash of every pair of both splits."""
        both = f"{self.training.fingerprint} {self.validation.fingerprint}"
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """How many pairs there are, and the names of those to be judged by."""
        names = [self.validation.name(i) for i in range(min(len(self.validation), 100))]
        return {"training_pairs": len(self.training), "validation_pairs": len(self.validation), "validation": names}

    def check(self) -> None:
        """Look for all images, and whether they can be trained on as they are.

        Raises:
            ConfigError: Something is missing, or sizes do not fit a crop or each other.
        """
        self._require("training", "validation")

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
        if split == "validation":  # whole images, each by itself
            return
        sizes = {pairs.size(i): pairs.name(i) for i in range(len(pairs))}
        crop = self.config.data.crop
        for size, name in sizes.items():
            if crop is not None and min(size) < crop:
                yield f"task.data.crop: {crop} is more than {name} has ({size[0]} x {size[1]}); lower it"
                return
        if crop is None and len(sizes) > 1 and self._micro_batch_size > 1:
            yield (
                f"micro_batch_size: {self._micro_batch_size} images of different sizes make no batch; write 1, or give "
                f"task.data.crop"
            )

    def _channel_faults(self, split: Split, pairs: Pairs) -> Iterator[str]:
        for i in range(len(pairs)):
            if pairs.channels(i) != 1:
                yield (
                    f"{SECTIONS[split]}: the target {pairs.name(i)} has {pairs.channels(i)} channels; "
                    f"this task takes maps with one, like depth"
                )
                return

    def prepare(self) -> str:
        """Look at everything once; nothing needs to be written."""
        self.check()
        return (
            f"{len(self.training):,} training and {len(self.validation):,} validation pairs are ready "
            f"(fingerprint {self.data_fingerprint})"
        )

    def open_data(self) -> None:
        """Open both splits and check them."""
        self.check()
        _ = self.data_fingerprint

    def open_validation(self) -> None:
        """Open the pairs to be judged by and check them; those to train on may be gone."""
        self._require("validation")

    def batch(self, sample_ids: np.ndarray, *, split: Split, step: int) -> Batch:
        """Read pairs and make their inputs; everything random in training is a function of (seed, step, id)."""
        if split == "validation":
            return as_batch([self._validation_sample(int(i)) for i in sample_ids])
        return as_batch([self._training_sample(int(i), step) for i in sample_ids])

    @abstractmethod
    def _training_sample(self, index: int, step: int) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def _validation_sample(self, index: int) -> dict[str, np.ndarray]: ...

    # ---------------------------------------------------------------------------------------------------- the network

    def build_model(self) -> DKNModel:
        """Return the filter, drawn from the run's seed."""
        torch.manual_seed(self._seed)
        return DKNModel(DKNConfig(**asdict(self.config.model)))

    def describe(self, model: nn.Module) -> dict[str, str]:
        """Return operations."""
        assert isinstance(model, DKNModel)
        return {"forward FLOPs per pixel": f"{model.flops_per_pixel():,.0f}"}

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Sort: kernels of convolutions decay, norms and biases do not."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        kernels = {name: parameter for name, parameter in named.items() if parameter.ndim > 1}
        others = {name: parameter for name, parameter in named.items() if parameter.ndim <= 1}
        decay = self._optim.weight_decay
        return [ParameterGroup("matrix", kernels, decay), ParameterGroup("norm_or_bias", others, 0.0)]

    def probe_sites(self, model: nn.Module) -> list[Site]:
        """Return what every convolution and norm gives out."""
        assert isinstance(model, DKNModel)
        return sites_of_any(model.kernels)

    def cost(self, model: nn.Module) -> SampleCost:
        """Return the operations of a pair, where all have one size: backward costs twice what forward does."""
        assert isinstance(model, DKNModel)
        crop = self.config.data.crop
        sizes = {self.training.size(i) for i in range(len(self.training))} if crop is None else {(crop, crop)}
        height, width = sizes.pop()
        return SampleCost(tokens=None, flops=None if sizes else 3 * model.flops_per_pixel() * height * width)

    def save_assets(self, folder: Path) -> None:
        """Write how images become tensors; of what is a hole, what the training data say."""
        DKNImageProcessor(invalid=_holes(self.config.data.sources)).save_pretrained(folder)

    # ------------------------------------------------------------------------------------------------------- the loss

    def weight(self, batch: Batch) -> float:
        """Return the number of valid pixels."""
        return float(batch["valid"].sum())

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the summed absolute error over valid pixels; images of one size make one pass."""
        output = model(batch["guidance"], batch["input"]).output
        loss_sum = absolute_error(output, batch["truth"], batch["valid"])
        weight = batch["valid"].sum().float()
        return StepOutput(loss_sum, weight, {"loss": (loss_sum.detach(), weight)})

    def validation_report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the figures of the filter itself, then those of other methods and other guidances."""
        others = (name for name in means if name not in self.figures)
        return {f"validation_{name}": means[name] for name in (*self.figures, *others)}

    # --------------------------------------------------------------------------------------------- what it shows

    @abstractmethod
    def _filtered(self, model: nn.Module, image: Images) -> tuple[Tensor, DKNOutput]:
        """Return an image as the task filters it, (1, C, H, W), and the last pass."""

    def _units(self, batch: Batch) -> tuple[float, str | None]:
        """Return what an error of 1.0 is worth in a batch of one image, and the unit's name."""
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
        """Return the card.

        Args:
            form: What is to be added to the filter's shape.
            purpose: What it was trained to do, and anything after it.
            usage: What to do with the loaded `model`.
        """
        model = self.config.model
        sources = [*self.config.data.sources, *self.config.data.validation_sources]
        return ModelCard(
            pipeline_tag="image-to-image",
            tags=["dkn", "joint-image-filtering"],
            summary=f"{model.architecture.upper()}, a joint image filter ({model.kernel_size} x {model.kernel_size} "
            f"samples in a window of {model.window_size} pixels{form}), trained to {purpose}",
            usage=_LOADING + usage,
            data=", ".join(dict.fromkeys(source.path for source in sources)),
        )


def _holes(sources: Sequence[PairSourceConfig]) -> Literal["zero", "none"] | float:
    """Return DKNImageProcessor's `invalid` for a filter that learned from some sources, by their `missing`.

    Drawn scenes have no holes, and no say; `zero` where nothing else has one. Where sources disagree, zeros are holes
    if any source has them so: a measured zero is then filled, and comes back as it was, where a hole that counts as a
    value would spoil all around it. Else the first number that any source names; `none` if all say null. The
    data themselves are not looked at: NYU's arrays of normalised depth, whose zeros are read as values, count by what
    is written.
    """
    said = [source.missing for source in sources if source.path not in KINDS]
    numbers = [missing for missing in said if missing is not None]
    if 0 in numbers or not said:
        return "zero"
    return numbers[0] if numbers else "none"


def absolute_error(output: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the sum of absolute differences over valid pixels, () fp32; what is not valid may hold anything."""
    return torch.where(valid, output.float() - truth, 0.0).abs().sum()


def add(sums: Sums, name: str, value: Tensor, weight: Tensor | None = None) -> None:
    """Add a value and its weight (1 where none is given) to the sums of a name."""
    value_before, weight_before = sums.get(name, (torch.zeros_like(value), torch.zeros_like(value)))
    more = torch.ones_like(value) if weight is None else weight.to(value)
    sums[name] = (value_before + value, weight_before + more)


def add_judged(sums: Sums, name: str, values: Tensor, judged: Tensor) -> None:
    """Add figures of images, those of which there is something to judge: both of one shape, `judged` 0 or 1."""
    add(sums, name, (values * judged).sum(), judged.sum())
