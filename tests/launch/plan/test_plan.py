"""`python -m launch plan`: what it prints, what it recommends, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.plan.case import at_stage, case_of
from launch.plan.machine import Machine
from launch.plan.memory import GIB, memory
from launch.plan.recommend import HEADROOM, recommend, settings
from train.config.facts.hardware import CARDS, card_named
from train.config.load import load

ROOT = Path(__file__).parents[3]
SIZES = ("400m", "1.5b", "3.2b")
UNMEASURED = "probes.activations_every=null"


def config_file(size: str) -> str:
    return str(ROOT / f"configs/language_model/{size}.yaml")


def machine(gpus: int, **options: Any) -> Machine:
    card = card_named("H100")
    assert card is not None
    return Machine(**({"gpus": gpus, "card": card, "memory_gib": 80.0} | options))


def test_stages_cost_the_bytes_per_parameter_that_everyone_knows() -> None:
    """In bf16 with fp32 gradients: 16 at stage 0 (bf16 gradients), 18 at stages 1 to 3; over n GPUs."""
    config = load(config_file("3.2b"))
    parameters = 3_659_532_800
    for stage, alone, shared in ((0, 16, 16), (1, 18, 6 + 12 / 8), (2, 18, 2 + 16 / 8), (3, 18, 18 / 8)):
        for gpus, per_parameter in ((1, alone), (8, shared)):
            case = at_stage(case_of(config, gpus=gpus, micro_batch_size=1), stage)
            assert memory(config, case).persistent == pytest.approx(per_parameter * parameters)


def test_sgd_costs_a_moment_less_than_adamw(capsys: pytest.CaptureFixture[str]) -> None:
    """4 bytes per parameter less on each GPU that holds the state, and in the checkpoint."""
    parameters = 3_659_532_800
    adamw, sgd = (load(config_file("3.2b"), [f"optim.optimizer={name}"]) for name in ("adamw", "sgd"))
    for stage, gpus in ((0, 1), (0, 8), (1, 8), (2, 8), (3, 8)):
        two, one = (memory(c, at_stage(case_of(c, gpus=gpus, micro_batch_size=1), stage)) for c in (adamw, sgd))
        share = 1 if stage == 0 else gpus
        assert two.optimizer - one.optimizer == pytest.approx(4 * parameters / share)
        assert two.peak - one.peak >= 4 * parameters / share
    assert main(["plan", config_file("3.2b"), "optim.optimizer=sgd", "--gpus", "8"]) == 0
    printed = capsys.readouterr().out
    assert "Checkpoint: 29.28 GB (weight and one momentum in fp32)." in printed  # 8 bytes per parameter


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_recommended_loads_and_fits(size: str, gpus: int) -> None:
    config = load(config_file(size))
    best = recommend(config, machine(gpus))
    assert best is not None
    words = settings(best.case, config)
    assert case_of(load(config_file(size), words), gpus=gpus, micro_batch_size=1) == replace(
        best.case, micro_batch_size=1
    )
    assert best.memory.peak <= (1 - HEADROOM) * 80 * GIB


def test_more_memory_is_never_needed_by_a_smaller_micro_batch_or_by_more_gpus() -> None:
    config = load(config_file("1.5b"))
    for stage in (1, 2, 3):
        case = at_stage(case_of(config, gpus=2, micro_batch_size=2), stage)
        peak = memory(config, case).peak
        assert memory(config, replace(case, micro_batch_size=1)).peak < peak
        assert memory(config, replace(case, gpus=8)).peak < peak
        assert memory(config, replace(case, checkpointing=True)).peak < peak
        assert memory(config, replace(case, offload=True)).peak < peak


def test_the_plan_prints_tables_a_recommendation_and_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config_file("3.2b"), "--gpus", "8"]) == 0
    printed = capsys.readouterr().out
    for part in ("3,659,532,800", "24,441,169,920", "largest that fits", "Recommended: ", "Checkpoint: 43.91 GB"):
        assert part in printed, part
    assert "In host memory, until written: 43.91 GB per node of 8 GPUs." in printed
    assert "Attention: head width 160: " in printed
    assert "task.model.num_attention_heads=20 task.model.num_key_value_heads=10" in printed
    assert f"{'tokens per parameter':30}{'8.25':>18}\n" in printed  # 30,198,988,800 / 3,659,532,800
    assert "a guess; set your own with --mfu" in printed
    assert "Accuracy of the memory: " in printed


@pytest.mark.parametrize("gpus", [1, 8, 64])
@pytest.mark.parametrize("size", SIZES)
def test_lines_are_short(size: str, gpus: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config_file(size), "--gpus", str(gpus)]) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 120
    assert ("Communication: " in printed) == (gpus > 1)
    assert ("between nodes" in printed) == (gpus > 8)


def test_an_mfu_that_is_given_is_used_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config_file("400m"), "--mfu", "0.5", "--gpu", "a100", "--gpus", "4"]) == 0
    # 256 x 8,192 tokens x 4,239,986,688 operations / (4 x 312e12 x 0.5) = 14.25 s. On NVLink of 0.8 x 300 GB/s
    # 608,142,336 gradients of 4 bytes take 2 x 3/4 x 2.433 GB / 240 GB/s = 15.2 ms, and weights of 2 bytes 3.8 ms.
    printed = capsys.readouterr().out
    assert "14.27 s a step: 14.25 s of computation + 19 ms of communication (0 %)" in printed
    assert "57.1 hours in all" in printed  # 14,400 steps
    assert "an MFU of 0.5 (as given) of the A100's 312 TFLOP/s" in printed


def test_what_a_measured_step_needs_is_planned_for_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    config = load(config_file("400m"))
    eager, compiled = (load(config_file("400m"), [word]) for word in ("engine.compile=false", UNMEASURED))
    own, alone, never = (memory(c, case_of(c, gpus=1, micro_batch_size=4)) for c in (config, eager, compiled))
    assert own.activations == alone.activations > never.activations
    assert own.loss == never.loss < alone.loss  # compiled in measured steps too
    assert main(["plan", config_file("400m")]) == 0
    more = (own.peak - never.peak) / GIB
    assert f"Measured steps run uncompiled: {more:+.1f} GiB as configured" in capsys.readouterr().out
    assert main(["plan", config_file("400m"), UNMEASURED]) == 0
    assert "Measured steps" not in capsys.readouterr().out


def test_the_memory_of_a_gpu_is_its_cards(capsys: pytest.CaptureFixture[str]) -> None:
    for card in CARDS:
        assert main(["plan", config_file("400m"), "--gpu", card.name.upper()]) == 0
        assert f"of {card.memory_gib:g} GiB ({card.name})" in capsys.readouterr().out.splitlines()[0]


def test_the_cards_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--gpu", "list"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(card.name in printed for card in CARDS)
    assert "NVLink" in printed


def test_where_nothing_fits_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config_file("3.2b"), "--gpu-memory", "8"]) == 0
    printed = capsys.readouterr().out
    assert "does not fit" in printed
    assert "Recommended: nothing fits" in printed


def test_a_small_card_is_told_to_offload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config_file("1.5b"), "--gpu-memory", "24"]) == 0
    assert "engine.offload=optimizer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "0"], "--gpus: 0 is too small; write 1 or more"),
        (["--gpus", "7"], "start 4 or 8 ranks"),
        (["--gpu-memory", "-3"], "--gpu-memory: -3 GiB is out of range"),
        (["--gpu-memory", "nan"], "--gpu-memory: nan GiB"),
        (["--mfu", "40"], "--mfu: 40 is out of range"),
        (["--gpus-per-node", "0"], "--gpus-per-node: 0 is too small"),
        (["--node-bandwidth", "0"], "--node-bandwidth: 0 GB/s is out of range"),
        (["--network-bandwidth", "-1"], "--network-bandwidth: -1 GB/s is out of range"),
        (["--gpu", "V100"], "--gpu: 'V100' is not listed; write one of these cards"),
        (["engine.zero_stge=2"], "did you mean engine.zero_stage?"),
    ],
)
def test_what_is_wrong_is_exit_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config_file("400m"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_everything_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config_file("400m"), "steps=0", "--gpus", "0", "--mfu", "2"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_planning_and_sweeping_import_no_torch() -> None:
    imported = "launch.plan.plan, launch.sweep.sweep"
    code = f"import sys, {imported}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
