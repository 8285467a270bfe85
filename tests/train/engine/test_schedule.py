"""Schedules against their closed forms."""

from __future__ import annotations

import math

import pytest

from train.config.run import OptimConfig
from train.engine.schedule import as_steps, learning_rate

STEPS = 100


def rates(**settings: object) -> list[float]:
    optim = OptimConfig(lr=2.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(step, optim=optim, steps=STEPS) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "warmup_stable_decay", "constant"])
def test_warm_up_is_linear_to_the_peak(schedule: str) -> None:
    found = rates(schedule=schedule, warmup=10)
    assert found[:10] == pytest.approx([0.2 * n for n in range(1, 11)])
    assert max(found) == 2.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "warmup_stable_decay"])
def test_the_floor_is_reached_at_the_last_step(schedule: str) -> None:
    assert rates(schedule=schedule, warmup=0.1, final_lr_fraction=0.25)[-1] == pytest.approx(0.5)
    assert rates(schedule=schedule, warmup=0)[-1] == pytest.approx(0.0, abs=1e-12)


def test_cosine_is_the_half_period() -> None:
    found = rates(schedule="cosine", warmup=20)
    for step in range(20, STEPS + 1):
        assert found[step - 1] == pytest.approx(1 + math.cos(math.pi * (step - 20) / 80))


def test_warmup_stable_decay_holds_and_then_falls() -> None:
    found = rates(schedule="warmup_stable_decay", warmup=0.1, decay=0.25)
    assert set(found[9:75]) == {2.0}
    assert found[74:] == pytest.approx([2.0 * (100 - n) / 25 for n in range(75, 101)])


def test_spans_are_fractions_or_steps() -> None:
    assert as_steps(0.1, 250) == 25
    assert as_steps(7, 250) == 7
