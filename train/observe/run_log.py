"""Log of a run: rows of metrics, probes and events, forwarded to every sink."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from train.config.facts.run_layout import step_name
from train.observe.console import Console, UnitOf, no_unit
from train.observe.gallery import RunGallery
from train.observe.jsonl import JsonLines
from train.observe.sink import Sink, Table, magnitude_histogram
from train.observe.tensorboard import TensorBoard
from train.ranks.distributed import World, gather_hosts

_PLOTTED_ACTIVATIONS = ("variance", "max_abs", "top1_over_median", "fp16_overflow_share")
_PLOTTED_GRADIENTS = {
    "norm": "gradient_norm",
    "parameter_norm": "parameter_norm",
    "update_ratio": "update_ratio",
    "scale_mean": "norm_scale_mean",
}
_PLOTTED_LAYERS = ("loss_without", "angular_distance")


class RunLog:
    """Forwards everything that a run logs to its sinks; only rank 0 has sinks, calls on other ranks do nothing.

    Args:
        folder: The run folder.
        world: This rank's position.
        steps: Number of steps of the whole run.
        done: Number of steps before this start.
        hyperparameters: The run configuration as nested plain values.
        unit_of: Returns the unit of a validation metric.
    """

    def __init__(
        self,
        folder: Path,
        *,
        world: World,
        steps: int,
        done: int,
        hyperparameters: Mapping[str, Any],
        unit_of: UnitOf = no_unit,
    ) -> None:
        self.folder = folder
        self.hosts = gather_hosts()
        self._sinks: list[Sink] = []
        self._console: Console | None = None
        if not world.is_main:
            return
        self._sinks += [JsonLines(folder, done=done), TensorBoard(folder / "tensorboard", first_step=done + 1)]
        self._console = Console(steps=steps, done=done, unit_of=unit_of)
        self._sinks.append(self._console)  # last: its line confirms that the other sinks have written
        for sink in self._sinks:
            sink.hyperparameters(hyperparameters)

    def event(self, kind: str, *, step: int, **fields: Any) -> None:
        """Log a one-time event."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._row("events", step, {"time": now, "event": kind, "step": step, **fields})

    def row(self, step: int, fields: Mapping[str, Any]) -> None:
        """Log the metrics of a step or of a validation."""
        numbers = _finite(fields)
        for sink in self._sinks:
            sink.row("metrics", step, {"step": step, **fields})
            sink.scalars(step, numbers)
            sink.flush()

    def activations(
        self, step: int, rows: Sequence[Mapping[str, Any]], histograms: Mapping[tuple[int | None, str], Tensor]
    ) -> None:
        """Log the activation probe: a row per site, and histograms of exponents for some sites."""
        for row in rows:
            self._row("activations", step, {"step": step, **row})
            place = _place(row["layer"], row["site"])
            self._scalars(step, {f"{name}/{place}": row[name] for name in _PLOTTED_ACTIVATIONS})
        for (layer, site), counts in histograms.items():
            histogram = magnitude_histogram(counts)
            if histogram is None:
                continue
            for sink in self._sinks:
                sink.histogram(step, f"log2_magnitude/{_place(layer, site)}", histogram)

    def gradients(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the gradient probe: a row per parameter."""
        for row in rows:
            self._row("gradients", step, {"step": step, **row})
            scalars = {f"{label}/{row['parameter']}": row.get(name) for name, label in _PLOTTED_GRADIENTS.items()}
            self._scalars(step, scalars)

    def layers(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the contributions of the layers: a row per layer."""
        for row in rows:
            self._row("layers", step, {"step": step, **row})
            self._scalars(step, {f"{name}/layer_{row['layer']:03d}": row[name] for name in _PLOTTED_LAYERS})

    def gallery(self, step: int) -> RunGallery:
        """Return the gallery for the images and arrays of this step."""
        folder = self.folder / "images" / step_name(step) if self._sinks else None
        return RunGallery(folder, self._sinks, step)

    def tick(self) -> None:
        """Advance the progress bar by one step."""
        if self._console is not None:
            self._console.tick()

    def close(self) -> None:
        """Flush and close all sinks."""
        for sink in reversed(self._sinks):  # the progress bar first, so that errors do not garble it
            sink.close()

    def _row(self, table: Table, step: int, fields: Mapping[str, Any]) -> None:
        for sink in self._sinks:
            sink.row(table, step, fields)

    def _scalars(self, step: int, fields: Mapping[str, Any]) -> None:
        numbers = _finite(fields)
        for sink in self._sinks:
            sink.scalars(step, numbers)


def _finite(fields: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in fields.items() if isinstance(value, int | float) and math.isfinite(value)}


def _place(layer: int | None, site: str) -> str:
    """Return a name under which TensorBoard sorts layers numerically, up to layer 999."""
    return site if layer is None else f"layer_{layer:03d}.{site}"
