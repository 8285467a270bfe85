"""Runs of a sweep in memory, with known final losses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.runs import (
    GRADIENTS,
    LAYERS,
    METRICS,
    Record,
    activation_table,
    gradient_table,
    placement_of,
    table,
)
from analysis.setting_facts import SettingFacts
from tests.analysis.synthetic import config, setting_facts

FACTS = json.loads(setting_facts("language_model"))
FIRST_LOSS, PARAMETERS, STEPS = 7.0, 1000, 10


def run(
    placement: str = "peri",
    loss: float | None = 3.0,
    *,
    lr: float = 1e-3,
    seed: int = 0,
    steps_done: int = STEPS,
    samples: str | None = "same",
    spikes: int = 0,
    activations: Sequence[Mapping[str, Any]] = (),
    gradients: Sequence[Mapping[str, Any]] = (),
    layers: Sequence[Mapping[str, Any]] = (),
    **changes: Any,
) -> Record:
    """Return a run that ends at a validation loss, None if it diverged; its samples hash to `samples` and the step."""
    tree = config(task__model__norm_placement=placement, optim__lr=lr, seed=seed, task__data={"seed": seed},
                  steps=STEPS, **changes)  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"step": step, "tokens": 500 * step, "loss": FIRST_LOSS if step == 1 else loss, "is_validation": False,
         "samples_hash": samples and f"{samples} {seed} {step}"}
        for step in (1, steps_done)
    ]  # fmt: skip
    rows.append({"step": steps_done, "tokens": 500 * steps_done, "validation_loss": loss, "is_validation": True})
    name = f"{placement}-{lr:g}-{seed}"
    return Record(
        label=name,
        folder=Path(name),
        config=tree,
        environment={"parameters": PARAMETERS},
        metrics=table(rows, METRICS),
        activations=activation_table(activations),
        gradients=gradient_table(gradients) if gradients else table([], GRADIENTS),
        layers=table(layers, LAYERS),
        events=[{"event": "spike", "step": step, "quantity": "loss"} for step in range(1, spikes + 1)],
        placement=placement_of(tree),
        setting_facts=SettingFacts(FACTS["report"], tuple(FACTS["judged_by"])),
    )
