"""Results of an inspection: a model at its steps, as rows for plots and as data files."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.inspect.architecture import Architecture
from analysis.inspect.massive import Largest
from analysis.inspect.measurement import Measurement
from analysis.inspect.models import Subject
from analysis.runs import Record, activation_table, gradient_table
from modeling.decoder.facts_placements_periln import CHOICES

_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A model at one step.

    Attributes:
        step: Saved step of a run; 0 for any other model.
        architecture: The architecture, without references to modules.
        measurement: The measurements.
        tokens: Text of the tokens with the largest activations, by window and position.
        facts: Class, parameters, dtype, device, windows, ...
        notes: Remarks for the reader.
    """

    step: int
    architecture: Architecture
    measurement: Measurement
    tokens: Mapping[tuple[int, int], str]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]

    def token(self, element: Largest) -> str:
        """Return the text of the token at which a large activation stands."""
        return self.tokens[element.window, element.position]


@dataclass(frozen=True)
class Inspected:
    """A model with everything that was measured, a snapshot per step."""

    subject: Subject
    snapshots: tuple[Snapshot, ...]

    @property
    def last(self) -> Snapshot:
        """The snapshot of the last step."""
        return self.snapshots[-1]

    def named(self, snapshot: Snapshot) -> str:
        """Return a name for a snapshot: with its step where there are several."""
        label = self.subject.label
        return f"{label}, step {snapshot.step:,}" if len(self.snapshots) > 1 else label

    def latest(self) -> Record:
        """Return the rows of the last snapshot, as a model without a time axis."""
        return self._record(self.named(self.last), [(0, self.last)])

    def over_steps(self) -> Record:
        """Return the rows of all snapshots."""
        return self._record(self.subject.label, [(snapshot.step, snapshot) for snapshot in self.snapshots])

    def _record(self, label: str, snapshots: Sequence[tuple[int, Snapshot]]) -> Record:
        placement = self.last.architecture.placement.removeprefix("parallel ")
        return Record(
            label=label,
            folder=Path(self.subject.name),
            activations=activation_table(
                {"step": step, **row} for step, snapshot in snapshots for row in snapshot.measurement.activations
            ),
            gradients=gradient_table(
                {"step": step, **row} for step, snapshot in snapshots for row in snapshot.measurement.gradients
            ),
            placement=placement if placement in (*CHOICES, "mixed") else "unknown",
        )


def data_files(item: Inspected, *, text: str) -> dict[str, str]:
    """Return the data of a model as files, by name."""
    rows: dict[str, list[dict[str, Any]]] = {"activations": [], "gradients": [], "massive": []}
    for snapshot in item.snapshots:
        rows["activations"] += [{"step": snapshot.step, **row} for row in snapshot.measurement.activations]
        rows["gradients"] += [{"step": snapshot.step, **row} for row in snapshot.measurement.gradients]
        rows["massive"] += [
            {"step": snapshot.step, **element.described(), "token": snapshot.token(element)}
            for element in snapshot.measurement.largest
        ]
    angles = [
        {"step": s.step, "depths": s.measurement.depths, "angular_distance": s.measurement.angles}
        for s in item.snapshots
    ]
    files = {f"{name}.jsonl": "".join(f"{_json(row)}\n" for row in found) for name, found in rows.items()}
    summary = _json(_summary(item, text), indent=1)
    return files | {"angular.json": _json(angles) + "\n", "summary.json": summary + "\n"}


def _summary(item: Inspected, text: str) -> dict[str, Any]:
    return {
        "model": item.subject.name,
        "label": item.subject.label,
        "text": text,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "steps": [
            {
                "step": snapshot.step,
                "placement": snapshot.architecture.placement,
                "loss": snapshot.measurement.loss,
                "bits_per_byte": snapshot.measurement.bits_per_byte,
                "predicted_tokens": snapshot.measurement.num_predicted,
                **snapshot.facts,
                "final_norm": snapshot.architecture.final_norm,
                "layers": [layer.described() for layer in snapshot.architecture.layers],
                "notes": list(snapshot.notes),
            }
            for snapshot in item.snapshots
        ],
    }


def _json(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(_strict(value), allow_nan=False, indent=indent)


def _strict(value: Any) -> Any:
    """Return a JSON value in which what is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value
