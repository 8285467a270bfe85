"""Figures of timed runs."""

from __future__ import annotations

import pytest

from tests.gpu.bench import ROOT
from tests.gpu.loops.profile import PROFILED
from tests.gpu.runs import loaded
from tests.gpu.stages.speed import WARM_UP, fitting, planned, steady


def row(step: int, speed: float) -> dict[str, float | None]:
    return {"step": step, "tokens_per_second": speed, "mfu": speed / 1e5, "peak_memory_gib": 60.0 + step}


def test_the_median_leaves_out_warm_up_and_the_step_that_is_profiled() -> None:
    found = [row(step, 1.0) for step in range(1, WARM_UP + 1)]
    found += [row(step, 100.0 * step) for step in range(WARM_UP + 1, PROFILED)]
    found.append(row(PROFILED, 2.0))
    figures = steady(found)
    assert figures["counted_steps"] == PROFILED - 1 - WARM_UP
    assert figures["tokens_per_second"] == 100.0 * (WARM_UP + PROFILED) / 2
    assert (figures["slowest"], figures["fastest"]) == (100.0 * (WARM_UP + 1), 100.0 * (PROFILED - 1))
    assert figures["peak_gib"] == 60.0 + PROFILED - 1


def test_too_few_steps_are_no_figure() -> None:
    with pytest.raises(RuntimeError, match="only 4 steps"):
        steady([row(step, 1.0) for step in range(1, 5)])


def test_the_largest_micro_batch_that_fits_is_taken() -> None:
    settings = [str(ROOT / "configs/language_model/3.2b.yaml"), "engine.activation_checkpointing=false"]
    settings.append("task.data.sequence_length=2048")
    words = [[*settings, f"micro_batch_size={micro}"] for micro in (8, 4, 2, 1)]
    plans = [planned(each)["plan_gib"] for each in words]
    assert plans == sorted(plans, reverse=True)
    assert loaded(fitting(words, gib=79.6)).micro_batch_size == 1
    assert loaded(fitting(words, gib=140.0)).micro_batch_size == 8
    assert fitting(words, gib=10.0) == words[-1]
