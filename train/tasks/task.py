"""What the training loop asks of a task. The loop knows nothing else of what is being learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from analysis.measure.activations import Site, sites_of_any
from train.data.split import Split

Batch = dict[str, Tensor]  # every value holds one entry per sample along its first dimension
Sums = dict[str, tuple[Tensor, Tensor]]  # name -> (sum, weight), fp32 scalars; a mean is taken over all ranks at once


_USAGE = """\
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)"""


class StepOutput(NamedTuple):
    """One forward pass over one micro-batch."""

    loss_sum: Tensor  # () fp32: the objective, summed (not averaged) over what `weight` counts
    weight: Tensor  # () fp32: equal to the task's weight(batch)
    metrics: Sums  # shown beside the loss; "loss" is what the logs call the loss


class SampleCost(NamedTuple):
    """What one sample costs, for throughput figures."""

    tokens: int | None  # null where the task has none
    flops: float | None  # forward and backward, recomputation not counted


class ParameterGroup(NamedTuple):
    """Parameters that share their hyper-parameters."""

    name: str
    parameters: dict[str, nn.Parameter]
    weight_decay: float


class ModelCard(NamedTuple):
    """What an exported model's README says of it beside its figures."""

    pipeline_tag: str | None  # of the hub's; None: it has none for this
    tags: list[str]
    summary: str  # Markdown
    usage: str  # Python; FOLDER stands for where the model lies
    data: str


class Gallery(Protocol):
    """Where a task puts what figures can not tell: pictures on TensorBoard, arrays in the run folder's images/."""

    def image(self, name: str, pixels: Tensor) -> None:
        """Show a picture: (3 or 1, H, W), from 0 to 1."""
        ...

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays in images/step_NNNNNN/NAME.npz."""
        ...


class Task(ABC):
    """A model, its data and its loss. Making one is cheap; its data are opened when they are first needed.

    What a new task must write is abstract and comes first; everything after it has a default that fits any network.

    `weight(batch)` (tokens, valid pixels) must follow from the batch alone: the loop sums it over all micro-batches
    and ranks before the first backward pass, so that the gradient is that of the exact mean over the global batch.
    """

    supports_bf16: ClassVar[bool] = False  # whether its metrics mean the same there

    # ----------------------------------------------------------------------------------------------- each task's own

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the initialised model in fp32 on the CPU; the same for every rank, a function of the seed."""

    @abstractmethod
    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Sort the trainable parameters into groups; each in exactly one."""

    @property
    @abstractmethod
    def num_training_samples(self) -> int:
        """Samples to train on; opens the data."""

    @property
    @abstractmethod
    def num_validation_samples(self) -> int:
        """Samples to be judged by; opens the data."""

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
        """Return the denominator's share of this batch."""

    @abstractmethod
    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Run the forward pass of training."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the sums of one validation batch; the model is in eval mode, without gradients."""

    # -------------------------------------------------------------------------------------------------------- the data

    def check(self) -> None:
        """Look at the data, without preparing them where that takes long.

        Raises:
            ConfigError: A run could not train on them.
        """
        self.open_data()

    def prepare(self) -> str:
        """Make the data ready, however long it takes; returns a sentence that says what is ready."""
        self.open_data()
        return (
            f"{self.num_training_samples:,} training and {self.num_validation_samples:,} validation samples are ready "
            f"(fingerprint {self.data_fingerprint})"
        )

    def open_data(self) -> None:
        """Open the data now: what needs them later would do so by itself."""
        _ = self.num_training_samples, self.num_validation_samples, self.data_fingerprint

    def open_validation(self) -> None:
        """Open no more of the data than judging needs.

        Raises:
            ConfigError: A model could not be judged by them.
        """
        self.open_data()

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """What environment.json records of the data."""
        return {"training_samples": self.num_training_samples, "validation_samples": self.num_validation_samples}

    # --------------------------------------------------------------------------------------------------- the network

    def outline(self) -> nn.Module:
        """Return the model for its shapes alone, buildable on the meta device and without data."""
        return self.build_model()

    def describe(self, model: nn.Module) -> dict[str, str]:
        """Return counts of an outline that `--describe` prints, by name."""
        return {}

    def probe_sites(self, model: nn.Module) -> list[Site]:
        """Name the places where activations are measured."""
        return sites_of_any(model)

    def cost(self, model: nn.Module) -> SampleCost:
        """Return what one training sample costs."""
        return SampleCost(tokens=None, flops=None)

    # ---------------------------------------------------------------------------------------------------- the results

    def validation_report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Turn the means over the whole validation split into `validation_loss` and other `validation_*` metrics."""
        return {f"validation_{name}": mean for name, mean in means.items()}

    def illustrate(self, model: nn.Module, gallery: Gallery) -> None:  # noqa: B027 (showing nothing is a choice)
        """Show what the model does with some validation samples; as `evaluate`, and on every rank the same."""

    def card(self) -> ModelCard:
        """Return what an exported model's README says."""
        return ModelCard(
            pipeline_tag=None,
            tags=[],
            summary=f"A model of the task {type(self).__name__}.",
            usage=_USAGE,
            data=f"fingerprint {self.data_fingerprint}",
        )

    def save_assets(self, folder: Path) -> None:  # noqa: B027 (most models need nothing)
        """Write what an exported model needs beside its weights (tokenizer, image processor) into a folder."""
