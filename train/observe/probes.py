"""Training-time probes: activation statistics and gradient norms, taken from the training step itself.

The loop calls `watching` around the passes of a step, `read_gradients` between the last backward pass and the
optimizer, and `write` after the optimizer. On steps that are not measured, each returns immediately.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from analysis.measure.activations import ActivationProbe, Site
from analysis.measure.gradients import layer_of, norm_scales, squared_norm
from train.config.run import RunConfig
from train.engine.eager import uncompiled
from train.engine.engine import Engine
from train.engine.optimizers import OPTIMIZERS
from train.observe.run_log import RunLog
from train.ranks.distributed import gather_over_ranks

# Quantities that each rank accumulates per parameter. Squares and sums are added over ranks; minima and maxima are not.
_SUMS = ("gradient", "weight", "update", "scale_sum")
_COLUMNS = {**dict.fromkeys(_SUMS, 0.0), "scale_min": math.inf, "scale_max": -math.inf}  # name -> neutral value


class Probes:
    """Measures steps at the intervals set in `probes.*` and writes activations.jsonl and gradients.jsonl.

    All calls are collective; rank 0 writes.

    Args:
        config: The run configuration.
        sites: The sites where activations are measured.
        engine: The training engine.
        log: The run log that receives the rows.
    """

    def __init__(self, config: RunConfig, *, sites: Sequence[Site], engine: Engine, log: RunLog) -> None:
        self._config = config
        self._engine = engine
        self._log = log
        self._activations = ActivationProbe(sites)
        self._scales = norm_scales(engine.module)
        self._values = {column: {} for column in _COLUMNS}  # column -> parameter -> () fp64

    def measures_activations(self, step: int) -> bool:
        """Return whether the activations of this step are measured."""
        return self._is_measured(step, self._config.probes.activations_every)

    def measures_gradients(self, step: int) -> bool:
        """Return whether the gradients of this step are measured."""
        return self._is_measured(step, self._config.probes.gradients_every)

    def _is_measured(self, step: int, every: int | None) -> bool:
        return every is not None and (step == 1 or step % every == 0 or step == self._config.steps)

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Measure the activations of the enclosed forward passes if this step is due."""
        if not self.measures_activations(step):
            yield
            return
        with uncompiled(self._engine.module), self._activations.watching():
            yield

    def read_gradients(self, step: int) -> None:
        """Measure gradients and weights before clipping and before the update; gradients are already reduced."""
        if not self.measures_gradients(step):
            return
        self._values = {column: {} for column in _COLUMNS}
        for name, gradient in self._engine.owned_gradients():
            self._values["gradient"][name] = squared_norm(gradient)
        for fragment in self._engine.owned_fragments():
            weight = fragment.tensors["weight"]
            self._values["weight"][fragment.name] = squared_norm(weight)
            if fragment.name in self._scales:
                self._values["scale_min"][fragment.name] = weight.min().double()
                self._values["scale_sum"][fragment.name] = weight.double().sum()
                self._values["scale_max"][fragment.name] = weight.max().double()

    def write(self, step: int, lr: float, *, applied: bool) -> None:
        """Write the measurements of this step; `applied` is whether its update reached the weights."""
        if self.measures_activations(step):
            rows = self._activations.rows(gather_over_ranks)
            self._log.activations(step, rows, self._activations.histograms(gather_over_ranks))
        if self.measures_gradients(step):
            if applied:
                self._measure_updates(lr)
            self._log.gradients(step, self._gradient_rows())

    def _measure_updates(self, lr: float) -> None:
        """Reconstruct each update from the optimizer state after the step, so that no copy of the weights is needed."""
        optim, decays, factors = self._config.optim, self._engine.weight_decays, self._engine.lr_factors
        squared_update = OPTIMIZERS[optim.optimizer].squared_update
        for fragment in self._engine.owned_fragments():
            self._values["update"][fragment.name] = squared_update(
                fragment.tensors,
                lr=lr * factors[fragment.name],
                weight_decay=decays[fragment.name],
                updates=self._engine.updates,
                optim=optim,
            )

    def _gradient_rows(self) -> list[dict[str, Any]]:
        shapes = self._engine.parameter_shapes()
        table = self._over_ranks(list(shapes))
        rows = []
        for index, (name, shape) in enumerate(shapes.items()):
            values = {column: entries[index] for column, entries in table.items()}
            numel, weight = math.prod(shape), math.sqrt(values["weight"])
            row = {
                "layer": layer_of(name),
                "parameter": name,
                "numel": numel,
                "norm": math.sqrt(values["gradient"]),
                "parameter_norm": weight,
                "update_ratio": math.sqrt(values["update"]) / weight if weight else None,
            }
            if name in self._scales:
                low, high = values["scale_min"], values["scale_max"]
                row |= {"scale_min": low, "scale_mean": values["scale_sum"] / numel, "scale_max": high}
            rows.append(row)
        return rows

    def _over_ranks(self, names: list[str]) -> dict[str, list[float]]:
        """Combine the values of all ranks into one value per column and name."""
        columns = [
            _column([self._values[column].get(name) for name in names], neutral) for column, neutral in _COLUMNS.items()
        ]
        over_ranks = torch.stack(gather_over_ranks(torch.stack(columns)))  # (ranks, columns, names)
        joined = dict(zip(_COLUMNS, over_ranks.unbind(1), strict=True))
        return {
            **{column: joined[column].sum(dim=0).tolist() for column in _SUMS},
            "scale_min": joined["scale_min"].amin(dim=0).tolist(),
            "scale_max": joined["scale_max"].amax(dim=0).tolist(),
        }


def _column(values: list[Tensor | None], neutral: float) -> Tensor:
    """Copy a column to the CPU in one transfer."""
    present = [value for value in values if value is not None]
    column = torch.full((len(values),), neutral, dtype=torch.float64)
    if present:
        column[torch.tensor([value is not None for value in values])] = torch.stack(present).cpu()
    return column
