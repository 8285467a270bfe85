"""A spike is what stands out from the steps before it; finding it costs no wait and survives a resume."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import Ranks
from tests.tiny import tiny_file
from tests.train.observe.test_probes import rows, train
from tests.train.test_resume import train as train_until
from train.observe.spikes import SpikeDetector, SpikeWatch
from train.tasks.language_model import LanguageModel


def judge(values: list[float], *, window: int = 100, threshold: float = 6.0) -> list[int]:
    detector = SpikeDetector(window=window, threshold=threshold)
    return [index for index, value in enumerate(values) if detector.judge(index, "loss", value)]


def noisy(length: int, *, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [3.0 + 0.1 * generator.gauss(0, 1) for _ in range(length)]


def test_a_planted_spike_is_found_at_its_step_and_only_there() -> None:
    values = noisy(300)
    values[150] += 1.0  # ten standard deviations
    assert judge(values) == [150]


def test_normal_noise_has_no_spikes_and_neither_has_a_falling_curve() -> None:
    assert [judge(noisy(400, seed=seed)) for seed in range(5)] == [[]] * 5
    assert judge([8 * 0.99**step + 2 for step in range(400)]) == []


def test_the_score_is_in_standard_deviations() -> None:
    detector = SpikeDetector(window=1000, threshold=6.0)
    for step, value in enumerate(noisy(1000)):
        detector.judge(step, "loss", value)
    spike = detector.judge(1000, "loss", 4.0)
    assert spike is not None
    # 10 standard deviations; the deviation of 1000 draws is known to some percent.
    assert spike.score == pytest.approx(10.0, rel=0.1)
    assert spike.median == pytest.approx(3.0, abs=0.02)


def test_a_spike_neither_hides_the_next_one_nor_makes_a_new_level_one_forever() -> None:
    values = noisy(300)
    values[150] = values[155] = 50.0
    assert judge(values) == [150, 155]
    shifted = noisy(100) + [value + 5 for value in noisy(200, seed=1)]
    found = judge(shifted)
    assert found
    assert max(found) < 160  # half a window later the new level is the median


def test_a_constant_has_no_spikes_of_its_rounding() -> None:
    assert judge([2.0] * 50 + [2.0 + 1e-6] * 50) == []
    assert judge([2.0] * 50 + [3.0]) == [50]


def test_what_is_not_finite_is_no_spike_and_not_remembered() -> None:
    assert judge([*noisy(50), math.nan, math.inf, *noisy(50, seed=1)]) == []


def test_the_first_values_are_not_judged() -> None:
    assert judge([1.0] * 19 + [100.0]) == []
    assert judge([1.0] * 20 + [100.0]) == [20]


def test_waiting_steps_are_judged_together_as_one_by_one() -> None:
    values = noisy(120)
    values[77] = 9.0
    found = []
    for stride in (1, 7):
        watch = SpikeWatch(window=100, threshold=6.0, recent={})
        spikes = []
        for step, value in enumerate(values, 1):
            watch.add(step, loss=torch.tensor([value * 4, 4.0], dtype=torch.float64), grad_norm=torch.tensor(1.0))
            if step % stride == 0:
                spikes += watch.settle()
        spikes += watch.settle()
        found.append((spikes, watch.recent))
    assert found[0] == found[1]
    assert [(spike.step, spike.quantity) for spike in found[0][0]] == [(78, "loss")]


def with_a_loud_batch(config_file: str, overrides: list[str], stop_after: int | None) -> str:
    """Train with the loss of step 24 a hundred times as large (two passes a step)."""
    original, calls = LanguageModel.step, {"training": 0}

    def loud(self: LanguageModel, model: Any, batch: Any) -> Any:
        output = original(self, model, batch)
        if not model.training:
            return output
        calls["training"] += 1
        first = 1 + (24 if stop_after is None and "name=tiny" in overrides else 0)  # resumed after step 24
        if (calls["training"] - 1) // 2 + first != 24:
            return output
        scaled = {name: (value * 100, weight) for name, (value, weight) in output.metrics.items()}
        return output._replace(loss_sum=output.loss_sum * 100, metrics=scaled)

    LanguageModel.step = loud  # type: ignore[method-assign]
    try:
        return train_until(config_file, overrides, stop_after)
    finally:
        LanguageModel.step = original  # type: ignore[method-assign]


def test_a_run_names_its_spikes_and_counts_them_over_a_resume(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tiny_file(tmp_path))
    settings = ["steps=30", "checkpoint.every=8", "log_every=10", "evaluate_every=30", "micro_batch_size=2"]
    ranks(2, with_a_loud_batch, path, [*settings, "name=unbroken"], None)
    ranks(2, with_a_loud_batch, path, [*settings, "name=tiny"], 26)
    ranks(2, with_a_loud_batch, path, [*settings, "name=tiny"], None)
    told = {}
    for name in ("unbroken", "tiny"):
        events = [row for row in rows(tmp_path, name, "events") if row["event"] == "spike"]
        told[name] = [{key: row[key] for key in ("step", "quantity", "value", "median", "score")} for row in events]
        counts = [row["spikes"] for row in rows(tmp_path, name, "metrics") if "loss" in row]
        assert counts == [0, 0, 2]
    assert [(row["step"], row["quantity"]) for row in told["unbroken"]] == [(24, "loss"), (24, "grad_norm")]
    assert told["tiny"] == told["unbroken"]


def test_no_threshold_means_no_spikes(ranks: Ranks, tmp_path: Path) -> None:
    ranks(1, train, str(tiny_file(tmp_path)), ["probes.spike_threshold=null"])
    assert [row["spikes"] for row in rows(tmp_path, "tiny", "metrics") if "loss" in row] == [0] * 8
