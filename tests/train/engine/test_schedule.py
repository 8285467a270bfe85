"""Schedules against their closed forms."""

from __future__ import annotations

import math

import pytest

from train.config.run import MOST_STEPS, OptimConfig
from train.engine.schedule import as_steps, learning_rate

STEPS = 100


def rates(**settings: object) -> list[float]:
    optim = OptimConfig(lr=2.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(step, optim=optim, steps=STEPS) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "warmup_stable_decay", "poly", "constant"])
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


@pytest.mark.parametrize("power", [None, 0.5, 1.0, 2.0])
def test_poly_is_deeplabs_policy(power: float | None) -> None:
    """Caffe counts iterations from 0: base_lr * (1 - iter / max_iter)^power."""
    found = rates(schedule="poly", warmup=0, poly_power=power)
    exponent = 0.9 if power is None else power
    assert found == pytest.approx([2.0 * (1 - iteration / STEPS) ** exponent for iteration in range(STEPS)], rel=1e-12)
    assert found[0] == 2.0
    assert found[49] == pytest.approx(2.0 * 0.51**exponent, rel=1e-12)
    assert found[-1] == pytest.approx(2.0 / 100**exponent, rel=1e-12)


def test_poly_falls_from_the_end_of_the_warm_up() -> None:
    """At step 20 the peak, the first of 81 steps; the last one has 1/81 left."""
    found = rates(schedule="poly", warmup=20, poly_power=2.0)
    assert found[18:] == pytest.approx([1.9, *(2.0 * ((101 - step) / 81) ** 2 for step in range(20, 101))], rel=1e-12)
    assert rates(schedule="poly", warmup=1) == rates(schedule="poly", warmup=0)
    assert rates(schedule="poly", warmup=STEPS)[-1] == 2.0


def test_the_last_step_of_the_longest_poly_schedule_has_a_rate() -> None:
    optim = OptimConfig(lr=1e-30, schedule="poly", poly_power=10.0, warmup=0)
    assert learning_rate(MOST_STEPS, optim=optim, steps=MOST_STEPS) == pytest.approx(1e-120, rel=1e-5)


def test_warmup_stable_decay_holds_and_then_falls() -> None:
    found = rates(schedule="warmup_stable_decay", warmup=0.1, decay=0.25)
    assert set(found[9:75]) == {2.0}
    assert found[74:] == pytest.approx([2.0 * (100 - n) / 25 for n in range(75, 101)])


def test_spans_are_fractions_or_steps() -> None:
    assert as_steps(0.1, 250) == 25
    assert as_steps(7, 250) == 7
