"""Stage `cost`: what measuring the inside of a network costs, from one run in which every second step is measured."""

from __future__ import annotations

import statistics
from typing import Any

from tests.gpu.bench import Bench
from tests.gpu.runs import folder, large, train_until
from train.config.run import ProbesConfig

WARM_UP, STEPS = 4, 16
EVERY_SECOND = ("probes.activations_every=2", "probes.gradients_every=2")


def run(bench: Bench) -> None:
    """Compare measured steps with their neighbours."""
    bench.item("400m peri", lambda: cost(bench))


def cost(bench: Bench) -> dict[str, Any]:
    """Return the medians of both kinds of steps, and the cost of measuring each step and at the default interval.

    A step that is measured is not compiled, as its hooks would need a second graph.
    """
    words = large(bench, "400m", "cost", *EVERY_SECOND, micro=16, batch=32, probed=True)
    child = bench.start("cost", "tests.gpu.loops.rank", ["drawn_on_card", *words])
    found, _ = train_until(child, folder(bench, "cost"), until=lambda rows: len(rows) >= STEPS, seconds=bench.left())
    counted = [row for row in found if row["step"] > WARM_UP]
    if len(counted) < 4:
        raise RuntimeError(f"only {len(found)} steps in time; at least {WARM_UP + 4} are needed")
    measured, unmeasured = (
        statistics.median(row["step_seconds"] for row in counted if row["step"] % 2 == odd) for odd in (0, 1)
    )
    every = ProbesConfig().activations_every
    assert every is not None
    return {
        "measured_step_ms": 1e3 * measured,
        "unmeasured_step_ms": 1e3 * unmeasured,
        "cost_of_a_measured_step": measured / unmeasured - 1,
        "default_interval": every,
        "cost_at_the_default_interval": (measured / unmeasured - 1) / every,
        "counted_steps": len(counted),
        "peak_gib": found[-1]["peak_memory_gib"],
    }
