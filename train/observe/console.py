"""Console sink: one line per row of metrics, and a progress bar on a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm
from typing_extensions import override

from train.observe.sink import Sink, Table

UnitOf = Callable[[str], str | None]


def no_unit(metric: str) -> str | None:
    """Return None: the unit of a metric that has none."""
    return None


class Console(Sink):
    """Console output.

    Args:
        steps: Number of steps of the whole run.
        done: Number of steps before this start.
        unit_of: Returns the unit of a validation metric.
    """

    def __init__(self, *, steps: int, done: int, unit_of: UnitOf = no_unit) -> None:
        self._steps, self._done, self._unit_of = steps, done, unit_of
        self._bar = tqdm(
            total=steps, initial=done, disable=not sys.stderr.isatty(), unit="step", leave=False, dynamic_ncols=True
        )
        self._began = time.monotonic()

    @override
    def row(self, table: Table, step: int, fields: Mapping[str, Any]) -> None:
        if table == "metrics":
            line = console_line(step, self._steps, fields, self._seconds_left(step), self._unit_of)
            tqdm.write(line, file=sys.stderr)  # not print, which would break the progress bar

    def tick(self) -> None:
        """Move the progress bar by one step."""
        self._bar.update()

    @override
    def close(self) -> None:
        self._bar.close()

    def _seconds_left(self, step: int) -> float:
        return (time.monotonic() - self._began) / max(1, step - self._done) * (self._steps - step)


def console_line(
    step: int, steps: int, fields: Mapping[str, Any], seconds_left: float, unit_of: UnitOf = no_unit
) -> str:
    """Return the console line for a row of training or validation metrics."""
    head = f"step {step:>{len(str(steps))}}/{steps}"
    if "validation_loss" in fields:
        names = [name for name in fields if name.startswith("validation_")]
        metrics = (
            f"{name.removeprefix('validation_')} {_number(fields[name])}{_suffix(unit_of(name))}" for name in names
        )
        return f"{head}  validation  {'  '.join(metrics)}"
    mfu = f"  mfu {100 * fields['mfu']:4.1f}%" if fields["mfu"] is not None else ""
    rate = fields.get("tokens_per_second")
    speed = f"{rate:9,.0f} tok/s" if rate is not None else f"{fields['samples_per_second']:9,.1f} samples/s"
    return (
        f"{head}  loss {_number(fields['loss'])}  grad {_number(fields['grad_norm'])}  lr {fields['lr']:.2e}"
        f"  {speed}{mfu}  {fields['step_seconds']:6.3f} s/step  {_duration(seconds_left)} left"
    )


def _number(value: float | None) -> str:
    return f"{value:7.4f}" if value is not None and math.isfinite(value) else "  -    "


def _suffix(unit: str | None) -> str:
    return "" if unit is None else f" {unit}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
