"""Measurements of a run's probes for its model card: variance and gradient norm over layers, and a figure of both.

The sentences are computed here; the figure is drawn by `python -m analysis card`, in a process of its own, because
training does not import the analysis.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from train.config.facts.run_layout import row_of

logger = logging.getLogger(__name__)

FIGURE = "measurements.png"
_ROOT = Path(__file__).resolve().parents[2]
_DRAWN_WITH = ("matplotlib", "pandas")
_DEADLINE = 300  # seconds


class OverLayers(NamedTuple):
    """A quantity of each layer at one step.

    Args:
        step: The step.
        values: By layer, from 0; all positive and finite, and those of at least one layer.
    """

    step: int
    values: dict[int, float]

    def in_words(self, quantity: str) -> str:
        """Return first, last, smallest and largest value, with their layers."""
        first, last = min(self.values), max(self.values)
        low, high = (choose(self.values, key=self.values.__getitem__) for choose in (min, max))
        return (
            f"{quantity} (step {self.step:,}): {self.values[first]:.4g} in layer {first}, {self.values[last]:.4g} in "
            f"layer {last}; from {self.values[low]:.4g} (layer {low}) to {self.values[high]:.4g} (layer {high})"
        )


def stream_variance(run: Path, step: int) -> OverLayers | None:
    """Return the variance of the residual stream after each layer, as last measured up to a step; None if it was not.

    Of a layer's sites on the stream, the last one counts: the one after its MLP.
    """
    rows = _last_rows(run / "activations.jsonl", step)
    on_stream = [row for row in rows if str(row.get("site")).endswith(".stream")]
    return _over_layers({row["layer"]: row.get("variance") for row in on_stream}, rows)


def gradient_norm(run: Path, step: int) -> OverLayers | None:
    """Return the norm of each layer's gradient, over all its parameters, as last measured up to a step."""
    rows = _last_rows(run / "gradients.jsonl", step)
    squares: dict[Any, float] = {}
    for row in rows:
        norm = row.get("norm")
        squares[row["layer"]] = squares.get(row["layer"], 0.0) + (norm**2 if _is_finite(norm) else math.nan)
    return _over_layers({layer: math.sqrt(square) for layer, square in squares.items()}, rows)


def figure(run: Path, step: int, out: Path) -> bool:
    """Draw variance and gradient norm over layers as a PNG; return whether it was drawn, and log why if it was not."""
    lacking = [name for name in _DRAWN_WITH if importlib.util.find_spec(name) is None]
    if lacking:
        logger.warning("the model card has no figure, as %s is not installed", " and ".join(lacking))
        return False
    command = [sys.executable, "-m", "analysis", "card", str(run.resolve()), "--step", str(step)]
    try:
        done = subprocess.run(
            [*command, "--out", str(out.resolve())], cwd=_ROOT, capture_output=True, text=True, timeout=_DEADLINE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("the model card has no figure: %s", error)
        return False
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        logger.warning("the model card has no figure: %s", reason)
    return done.returncode == 0


def _last_rows(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the rows inside layers of the last measured step up to `step`; damaged lines are skipped."""
    rows: list[dict[str, Any]] = []
    for row in _rows(path):
        if row["step"] > step or not isinstance(row.get("layer"), int):
            continue
        if rows and row["step"] < rows[0]["step"]:
            continue
        if rows and row["step"] > rows[0]["step"]:
            rows = []
        rows.append(row)
    return rows


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open("rb") as file:
            yield from filter(None, map(row_of, file))


def _over_layers(values: dict[Any, Any], rows: list[dict[str, Any]]) -> OverLayers | None:
    positive = {layer: value for layer, value in values.items() if _is_finite(value) and value > 0}
    return OverLayers(rows[0]["step"], positive) if positive else None


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
