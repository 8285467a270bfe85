"""Seconds of a step against arithmetic by hand, and how they change with the machine."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launch.plan.case import Case, at_stage, case_of
from launch.plan.machine import Machine
from launch.plan.step_time import StepTime, _beyond_backward, step_time, transfers
from launch.plan.workload import workload_of
from train.config.facts.hardware import card_named
from train.config.load import load
from train.config.run import RunConfig

ROOT = Path(__file__).parents[3]
PARAMETERS = 608_142_336  # of 400m


def config_of(size: str = "400m", *overrides: str) -> RunConfig:
    return load(str(ROOT / f"configs/language_model/{size}.yaml"), overrides)


def machine(gpus: int, **options: Any) -> Machine:
    card = card_named("H100")
    assert card is not None
    return Machine(**({"gpus": gpus, "card": card, "memory_gib": 80.0} | options))


def case(gpus: int, stage: int, *, micro_batch_size: int = 4, **options: Any) -> Case:
    own = case_of(config_of(), gpus=gpus, micro_batch_size=micro_batch_size)
    return replace(at_stage(own, stage), **options)


def seconds(gpus: int, stage: int = 1, *, on: Machine | None = None, **options: Any) -> StepTime:
    return step_time(config_of(), case(gpus, stage, **options), on or machine(gpus))


def test_400m_on_one_gpu() -> None:
    """256 x 8,192 = 2,097,152 tokens of 4.240 GFLOP = 8.892e15; at 0.4 x 989e12 = 395.6e12 a second 22.48 s."""
    time = seconds(1)
    assert time.computation == pytest.approx(22.48, abs=0.005)
    assert time.total == time.computation
    assert time.communication == time.exposed == 0


def test_400m_on_eight_gpus() -> None:
    """Computation 22.477 / 8 = 2.8096 s, and a ring over NVLink at 0.8 x 450 = 360 GB/s.

    Gradients: 608,142,336 x 4 bytes = 2.4326 GB, all-reduced: 2 x 7/8 x 2.4326 = 4.2570 GB, 11.825 ms.
    Weights: 2 bytes, 1.2163 GB, gathered: 7/8 x 1.2163 = 1.0642 GB, 2.956 ms. Together 14.78 ms: 0.5 %.
    """
    time = seconds(8)
    assert time.computation == pytest.approx(2.8096, abs=0.0005)
    assert time.exposed == pytest.approx(0.01478, abs=0.00001)
    assert time.total == pytest.approx(2.8244, abs=0.0005)


def test_400m_on_sixty_four_gpus() -> None:
    """Computation 22.477 / 64 = 0.35120 s, and eight nodes with one port of 0.8 x 50 = 40 GB/s each.

    Gradients: 2 x 63/64 x 2.4326 = 4.7891 GB, 119.73 ms. Weights: 63/64 x 1.2163 = 1.1973 GB, 29.93 ms.
    Together 149.66 ms: a step takes 0.50086 s, 30 % of it communication.
    """
    time = seconds(64)
    assert time.computation == pytest.approx(0.35120, abs=0.00005)
    assert time.exposed == pytest.approx(0.14966, abs=0.00001)
    assert time.total == pytest.approx(0.50086, abs=0.0001)


@pytest.mark.parametrize(
    ("stage", "options", "per_parameter"),
    [
        (0, {}, 2 * 2),  # bf16 gradients, all-reduced once a step
        (1, {}, 2 * 4 + 2),  # fp32 sums, once; weights
        (1, {"fp32_gradients": False}, 2 * 2 + 2),
        (2, {}, 4 * 2 * 4 + 2),  # after each of four passes
        (2, {"fp32_gradients": False}, 4 * 2 * 2 + 2),
        (3, {}, 4 * (4 + 2) + 4 * 2 * (PARAMETERS - 500_000_000) / PARAMETERS),  # the last 500 M stay gathered
    ],
)
def test_bytes_that_pass_a_gpu(stage: int, options: dict[str, Any], per_parameter: float) -> None:
    """Per parameter, times (n - 1) / n, on 16 GPUs with four passes each."""
    chosen = case(16, stage, **options)
    exchanged = transfers(workload_of(config_of()), chosen, passes=4)
    moved = sum(each.rounds * each.times * each.size for each in exchanged)
    assert moved == pytest.approx(per_parameter * PARAMETERS)
    time = step_time(config_of(), chosen, machine(16))
    assert time.communication == pytest.approx(15 / 16 * moved / 40e9)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_more_gpus_the_faster_but_never_in_proportion(stage: int) -> None:
    times = [seconds(gpus, stage).total for gpus in (1, 2, 4, 8, 16, 32, 64)]
    assert times[-1] > times[0] / 64
    assert all(later > earlier / 2 for earlier, later in pairwise(times))
    assert seconds(1, stage).communication == 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("link", ["node_bandwidth", "network_bandwidth"])
def test_more_bandwidth_is_never_slower(link: str, stage: int, overlap: bool) -> None:
    rates = (1.0, 10.0, 40.0, 100.0, 400.0, 1000.0)
    times = [
        seconds(64, stage, on=machine(64, **{link: rate}), overlap=overlap and stage > 0, bucket=50_000_000).total
        for rate in rates
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] > times[-1]


def test_the_slower_link_decides() -> None:
    assert machine(8, node_bandwidth=100.0, network_bandwidth=10.0).bandwidth == 100e9
    assert machine(16, node_bandwidth=100.0, network_bandwidth=10.0).bandwidth == 10e9
    assert machine(16, node_bandwidth=5.0, network_bandwidth=10.0).bandwidth == 5e9
    assert machine(8, gpus_per_node=4).nodes == 2
    assert machine(9).nodes == 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_overlap_hides_part_of_the_communication(stage: int) -> None:
    slow = seconds(64, stage, overlap=False, bucket=50_000_000)
    fast = seconds(64, stage, overlap=True, bucket=50_000_000)
    assert fast.communication == slow.communication == slow.exposed
    if stage == 1:  # BF16_Optimizer reduces after the backward pass in any case
        assert fast.exposed == slow.exposed
    else:
        assert 0 < fast.exposed < slow.exposed
        assert fast.total >= max(fast.computation, fast.communication)


@pytest.mark.parametrize(
    ("reduction", "backward", "bucket", "beyond"),
    [
        (3.0, 10.0, 1.0, 3.0),  # one bucket: full at the end of the pass
        (4.0, 10.0, 0.25, 1.0),  # four: 1 second each, every 2.5 seconds; the last one remains
        (20.0, 10.0, 0.25, 12.5),  # 5 seconds each, one after the other from 2.5 on: until 22.5
        (4.0, 10.0, 0.4, 0.8),  # the last is half full; the one before is done at 8 + 1.6
        (9.0, 10.0, 0.4, 3.4),  # the one before is sent from 8 to 11.6, the last until 13.4
    ],
)
def test_reductions_go_on_beyond_the_backward_pass(
    reduction: float, backward: float, bucket: float, beyond: float
) -> None:
    assert _beyond_backward(reduction, backward, bucket) == pytest.approx(beyond)


def test_a_given_mfu_is_that_of_the_configuration_and_scaled_for_others() -> None:
    config = config_of("3.2b")  # compiled, with checkpointing
    own = case_of(config, gpus=8, micro_batch_size=1)
    on = machine(8, mfu=0.3)
    given, without = (step_time(config, each, on).computation for each in (own, replace(own, checkpointing=False)))
    assert given == pytest.approx(2_097_152 * 24_441_169_920 / (8 * 989e12 * 0.3))
    assert without == pytest.approx(0.75 * given)
