"""Figure of a model card: variance of the residual stream and gradient norm over depth, side by side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.depth import stream_curve
from analysis.figures.gradients import layer_norms
from analysis.runs import Record, column
from analysis.style import DEPTH, HEIGHT, LAYER, WIDTH, look, paper, set_scales


class _Curve(NamedTuple):
    step: float
    x: np.ndarray
    y: np.ndarray
    words: tuple[str, str]  # of the axes


@paper
def card_figure(record: Record, *, step: int | None = None) -> Figure | None:
    """Draw both, as last measured; return None if neither was measured.

    Args:
        record: The run.
        step: Last step that counts; None: all do.
    """
    curves = [curve for name in ("activations", "gradients") if (curve := _curve(record, name, step)) is not None]
    if not curves:
        return None
    figure = Figure(figsize=(WIDTH * len(curves), HEIGHT), layout="constrained")
    color, marker, _ = look(record.placement)
    for number, curve in enumerate(curves, start=1):
        axes = figure.add_subplot(1, len(curves), number)
        axes.plot(curve.x, curve.y, color=color, marker=marker)
        axes.set(xlabel=curve.words[0], ylabel=curve.words[1])
        axes.set_title(f"step {curve.step:,.0f}", loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        set_scales(axes, log="y")
    return figure


def _curve(record: Record, name: str, step: int | None) -> _Curve | None:
    """Return the last curve over depth of "activations" or "gradients" up to a step; None if there is none."""
    steps = column(getattr(record, name), "step")
    steps = steps if step is None else steps[steps <= step]
    if not len(steps):
        return None
    at = float(steps.max())
    is_stream = name == "activations"
    x, y = (stream_curve(at, "variance") if is_stream else layer_norms(at))(record)
    words = (DEPTH, "variance of the residual stream") if is_stream else (LAYER, "gradient norm of the layer")
    return _Curve(at, x, y, words) if np.any(np.isfinite(y)) else None
