"""`python -m launch plan`: what it prints, what it recommends, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.plan import plan
from launch.plan.memory import GIB, at_stage, case_of, memory
from train.config.load import load

ROOT = Path(__file__).parents[3]
SIZES = ("400m", "1.5b", "3.2b")


def config_file(size: str) -> str:
    return str(ROOT / f"configs/language_model/{size}.yaml")


def test_stages_cost_the_bytes_per_parameter_that_everyone_knows() -> None:
    """In bf16 with fp32 gradients: 16 at stage 0 (bf16 gradients), 20 at stage 1, 18 at stages 2 and 3; over n GPUs."""
    config = load(config_file("3.2b"))
    parameters = 3_659_532_800
    for stage, alone, shared in ((0, 16, 16), (1, 20, 8 + 12 / 8), (2, 18, 2 + 16 / 8), (3, 18, 18 / 8)):
        for gpus, per_parameter in ((1, alone), (8, shared)):
            case = at_stage(case_of(config, gpus=gpus, micro_batch_size=1), stage)
            assert memory(config, case).persistent == pytest.approx(per_parameter * parameters)


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_recommended_loads_and_fits(size: str, gpus: int) -> None:
    config = load(config_file(size))
    machine = plan.Machine(gpus, 80, "H100", None)
    best = plan.recommend(config, machine)
    assert best is not None
    words = plan.settings(best.case, config)
    assert case_of(load(config_file(size), words), gpus=gpus, micro_batch_size=1) == replace(
        best.case, micro_batch_size=1
    )
    assert best.memory.peak <= (1 - plan.HEADROOM) * 80 * GIB


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
    assert "a guess; set your own with --mfu" in printed
    assert "Accuracy: " in printed.splitlines()[-2]


def test_an_mfu_that_is_given_is_used_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config_file("400m"), "--mfu", "0.5", "--gpu", "A100", "--gpus", "4"]) == 0
    # 14,400 steps x 256 x 8,192 tokens x 4,239,986,688 operations / (4 x 312e12 x 0.5) / 3,600
    assert "57.0 hours at an MFU of 0.5 (as given) and a peak of 312 TFLOP/s" in capsys.readouterr().out


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
        (["--gpu", "V100"], "--gpu: the peak FLOP/s of 'V100' are unknown; write one of"),
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
