"""What the training loop asks of a task. The loop knows nothing else of what is being learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from analysis.measure.activations import Site

Split = Literal["training", "validation"]
Batch = dict[str, Tensor]  # every value holds one entry per sample along its first dimension
Sums = dict[str, tuple[Tensor, Tensor]]  # name -> (sum, weight), fp32 scalars; a mean is taken over all ranks at once


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


class Task(Protocol):
    """A model, its data and its loss. Making one is cheap; its data are opened when they are first needed.

    `weight(batch)` (tokens, valid pixels) must follow from the batch alone: the loop sums it over all micro-batches
    and ranks before the first backward pass, so that the gradient is that of the exact mean over the global batch.
    """

    supports_bf16: bool  # whether its figures mean the same there

    @property
    def num_training_samples(self) -> int: ...  # noqa: D102

    @property
    def num_validation_samples(self) -> int: ...  # noqa: D102

    @property
    def data_fingerprint(self) -> str:
        """A hash that changes when any training or validation sample does."""
        ...

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """What environment.json says of the data."""
        ...

    def check(self) -> None:
        """Look at the data without preparing them.

        Raises:
            ConfigError: A run could not train on them.
        """
        ...

    def prepare(self) -> str:
        """Make the data ready, however long it takes; returns a sentence that says what is ready."""
        ...

    def open_data(self) -> None:
        """Open the data now: what needs them later would do so by itself."""
        ...

    def open_validation(self) -> None:
        """Open no more of the data than judging needs.

        Raises:
            ConfigError: A model could not be judged by them.
        """
        ...

    def outline(self) -> nn.Module:
        """Return the model for its shapes alone, buildable on the meta device and without data."""
        ...

    def describe(self, model: nn.Module) -> dict[str, str]:
        """Return counts of an outline that `--describe` prints, by name."""
        ...

    def build_model(self) -> nn.Module:
        """Return the initialised model in fp32 on the CPU; the same for every rank, a function of the seed."""
        ...

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Sort the trainable parameters into groups; each in exactly one."""
        ...

    def probe_sites(self, model: nn.Module) -> list[Site]:
        """Name the places where activations are measured; `sites_of_any` knows some of any network."""
        ...

    def cost(self, model: nn.Module) -> SampleCost:
        """Return what one training sample costs."""
        ...

    def batch(self, sample_ids: np.ndarray, *, split: Split, step: int) -> Batch:
        """Read samples (int64 (B,), indices below num_*_samples) into CPU tensors.

        Anything random (augmentation) is a function of the seed, `step` and the sample's id.
        """
        ...

    def weight(self, batch: Batch) -> float:
        """Return the denominator's share of this batch."""
        ...

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Run the forward pass of training."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> Sums:
        """Return the sums of one validation batch; the model is in eval mode, without gradients."""
        ...

    def illustrate(self, model: nn.Module, gallery: Gallery) -> None:
        """Show what the model does with some validation samples; as `evaluate`, and on every rank the same."""
        ...

    def card(self) -> ModelCard:
        """Return what an exported model's README says."""
        ...

    def save_assets(self, folder: Path) -> None:
        """Write what an exported model needs beside its weights (tokenizer, image processor) into a folder."""
        ...

    def validation_report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Turn the means over the whole validation split into `validation_loss` and other `validation_*` figures."""
        ...
