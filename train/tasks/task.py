"""The Task interface: everything the training loop knows about model, data and loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from analysis.measure.activations import Site, sites_of_any
from train.data.split import Split

Batch = dict[str, Tensor]  # every value has one entry per sample along its first dimension
Sums = dict[str, tuple[Tensor, Tensor]]  # name -> (sum, weight), fp32 scalars; means are taken over all ranks together


_USAGE = """\
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)"""


class StepOutput(NamedTuple):
    """Result of one forward pass over a micro-batch."""

    loss_sum: Tensor  # () fp32: the objective, summed (not averaged) over what `weight` counts
    weight: Tensor  # () fp32: equal to the task's weight(batch)
    metrics: Sums  # logged metrics; "loss" is the loss in the logs


class SampleCost(NamedTuple):
    """Cost of one sample, for throughput metrics."""

    tokens: int | None  # None if the task has none
    flops: float | None  # forward and backward, excluding recomputation


class AttentionShape(NamedTuple):
    """Shape of causal self-attention by torch's scaled_dot_product_attention."""

    heads: int
    key_value_heads: int
    width: int  # of a head
    length: int  # tokens


class ParameterGroup(NamedTuple):
    """Parameters that share their hyper-parameters."""

    name: str
    parameters: dict[str, nn.Parameter]
    weight_decay: float
    lr_factor: float = 1.0  # of the learning rate; one above 1 is declared in train.config.tasks.kinds


class ModelCard(NamedTuple):
    """Task-specific content of an exported model's README."""

    pipeline_tag: str | None  # on the Hugging Face hub; None if no tag applies
    tags: list[str]
    summary: str  # Markdown
    usage: str  # Python; FOLDER stands for the model folder
    data: str
    details: tuple[str, ...] = ()  # of the architecture, a line each


class Gallery(Protocol):
    """Sink for images and arrays that scalar metrics cannot convey: TensorBoard, and images/ in the run folder."""

    def image(self, name: str, pixels: Tensor) -> None:
        """Show an image: (3 or 1, H, W), from 0 to 1."""
        ...

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Save arrays to images/step_NNNNNN/NAME.npz."""
        ...


class Task(ABC):
    """A model, its data and its loss. Construction is cheap; data is opened on first use.

    The methods that a new task must implement are abstract and come first; all others have defaults that fit any
    network.

    `weight(batch)` (tokens, valid pixels) must depend on the batch alone: the loop sums it over all micro-batches and
    ranks before the first backward pass, so that the gradient is that of the exact mean over the global batch.
    """

    supports_bf16: ClassVar[bool] = False  # whether its metrics are still meaningful in bf16

    # ----------------------------------------------------------------------------------------------- to be implemented

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the initialized model in fp32 on the CPU; a function of the seed, hence the same on every rank."""

    @abstractmethod
    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Assign every trainable parameter to exactly one group."""

    @property
    @abstractmethod
    def num_training_samples(self) -> int:
        """Number of training samples; opens the data."""

    @property
    @abstractmethod
    def num_validation_samples(self) -> int:
        """Number of validation samples; opens the data."""

    @property
    @abstractmethod
    def data_fingerprint(self) -> str:
        """A hash that changes when any training or validation sample does."""

    @abstractmethod
    def batch(self, sample_ids: np.ndarray, *, split: Split, step: int) -> Batch:
        """Read samples (int64 (B,), indices below num_*_samples) into CPU tensors.

        Anything random (augmentation) is a function of the seed, `step` and the sample's id.
        """

    @abstractmethod
    def weight(self, batch: Batch) -> float:
        """Return this batch's contribution to the denominator of the mean loss."""

    @abstractmethod
    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Run a training forward pass."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the sums of one validation batch; the model is in eval mode and gradients are disabled."""

    # -------------------------------------------------------------------------------------------------------- the data

    def check(self) -> list[str]:
        """Check the data, without lengthy preparation; return what was read, a line each.

        Raises:
            ConfigError: A run could not train on the data.
        """
        self.open_data()
        return []

    def prepare(self) -> str:
        """Prepare the data, however long it takes; return a one-sentence summary."""
        self.open_data()
        return (
            f"{self.num_training_samples:,} training and {self.num_validation_samples:,} validation samples are ready "
            f"(fingerprint {self.data_fingerprint})"
        )

    def open_data(self) -> None:
        """Open the data now rather than on first use."""
        _ = self.num_training_samples, self.num_validation_samples, self.data_fingerprint

    def open_validation(self) -> None:
        """Open only the data needed for an evaluation.

        Raises:
            ConfigError: The data is not suitable for an evaluation.
        """
        self.open_data()

    @property
    def validation_sets(self) -> Sequence[int]:
        """Sizes of the sets that the validation samples are divided into, in order; no batch contains two sets."""
        return [self.num_validation_samples]

    def describe_validation(self) -> list[str]:
        """Return what an evaluation reads, a line each."""
        return [f"{self.num_validation_samples:,} validation samples"]

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """Facts about the data for environment.json."""
        return {"training_samples": self.num_training_samples, "validation_samples": self.num_validation_samples}

    # --------------------------------------------------------------------------------------------------- the network

    def outline(self) -> nn.Module:
        """Return the model for its shapes only; must work on the meta device and without data."""
        return self.build_model()

    def model_to_load(self) -> nn.Module:
        """Return the model that a checkpoint is loaded into; without reading initial weights, which may be gone."""
        return self.build_model()

    def describe(self, model: nn.Module) -> dict[str, str]:
        """Return additional counts for `--describe`, by name."""
        return {}

    def probe_sites(self, model: nn.Module) -> list[Site]:
        """Return the sites where activations are measured."""
        return sites_of_any(model)

    def layers(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the layers whose contribution can be measured, in order; none if the network is no stack of layers.

        Each maps the stream to the stream: the first tensor that it takes to the one that it returns, of equal shape
        (..., D).
        """
        return []

    def cost(self, model: nn.Module) -> SampleCost:
        """Return the cost of one training sample."""
        return SampleCost(tokens=None, flops=None)

    def attention(self) -> AttentionShape | None:
        """Return the shape of attention for which torch chooses a kernel, None if it chooses none."""
        return None

    # ---------------------------------------------------------------------------------------------------- the results

    def validation_report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Convert the means over the validation split to `validation_loss` and other `validation_*` metrics."""
        return {f"validation_{name}": mean for name, mean in means.items()}

    def metric_unit(self, name: str) -> str | None:
        """Return the unit of a validation metric for the console; None if it has none."""
        return None

    def illustrate(self, model: nn.Module, gallery: Gallery) -> None:  # noqa: B027 (showing nothing is a choice)
        """Show model outputs for some validation samples; called as `evaluate`, with the same samples on every rank."""

    def card(self) -> ModelCard:
        """Return the task-specific content of an exported model's README."""
        return ModelCard(
            pipeline_tag=None,
            tags=[],
            summary=f"A model of the task {type(self).__name__}.",
            usage=_USAGE,
            data=f"fingerprint {self.data_fingerprint}",
        )

    def export_settings(self) -> Mapping[str, Any]:
        """Return what the configurations of an exported model say beyond those of a trained one, by name."""
        return {}

    def save_assets(self, folder: Path) -> None:  # noqa: B027 (most models need nothing)
        """Write the assets that an exported model needs besides weights (tokenizer, image processor) to a folder."""
