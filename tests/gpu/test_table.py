"""The table of the GPU script copes with whatever a run has left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu import report
from tests.gpu.table import main, table

SPEED = {
    "state": report.OK,
    "micro_batch_size": 8,
    "accumulation": 4,
    "sequence_length": 2048,
    "recomputes": False,
    "tokens_per_second": 50_000.0,
    "slowest": 49_000.0,
    "fastest": 51_000.0,
    "mfu": 0.551,
    "peak_gib": 66.0,
    "plan_allocated_gib": 69.3,
    "seconds_to_first_step": 40.0,
}


def machine(folder: Path) -> None:
    found = report.Report(folder, "machine")
    packages = {"torch": "2.11.0", "triton": "3.6.0"}
    found.add("software", state=report.OK, date="2026-11-30", cuda="13.0", cudnn=91900, packages=packages)
    found.add("card", state=report.OK, name="NVIDIA H100 80GB HBM3", driver="580.1", memory_gib=79.6)
    report.close(folder, "machine", state=report.OK, seconds=12)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path)])
    assert error.value.code == 2


def test_it_opens_with_date_card_and_versions(tmp_path: Path) -> None:
    machine(tmp_path)
    lines = table(tmp_path).splitlines()
    assert lines[0] == "## 2026-11-30: python -m tests.gpu, NVIDIA H100 80GB HBM3"
    assert lines[2] == "79.6 GiB, driver 580.1, torch 2.11.0, CUDA 13.0, cuDNN 91900, triton 3.6.0."


def test_speeds_stand_beside_the_plan_and_the_formula(tmp_path: Path) -> None:
    machine(tmp_path)
    speed = report.Report(tmp_path, "speed")
    speed.add("1.5b peri", **SPEED)
    speed.add("1.5b pre", **{**SPEED, "tokens_per_second": 51_000.0, "attention": {"backend": "cuDNN"}})
    report.close(tmp_path, "speed", state=report.OK, seconds=200)
    text = table(tmp_path)
    row = "| 1.5b peri | 8 x 4 x 2,048 | 50,000 | 49,000 to 51,000 | 55.1 % | 66.0 | 69.3 | +5 % | 40 |"
    assert row in text.splitlines()
    assert "| 1.5b pre (cuDNN) |" in text
    assert "| Peri-LN / Pre-LN, 1.5b | 0.980 |" in text
    assert "6 N_matmul + 6 L d T" in text
    assert "989 TFLOP/s" in text


def test_what_failed_was_not_run_or_was_cut_off_is_listed(tmp_path: Path) -> None:
    found = report.Report(tmp_path, "speed")
    found.add("3.2b peri", state=report.FAILED, reason="out of memory")
    report.close(tmp_path, "speed", state=report.FAILED, seconds=9, reason="failed: 3.2b peri")
    report.close(tmp_path, "cost", state=report.NOT_RUN, seconds=0, reason="3 s left")
    report.Report(tmp_path, "training").write()  # killed
    (tmp_path / "filters.json").write_text("{")
    lines = table(tmp_path).splitlines()
    for line in (
        "- speed: failed (failed: 3.2b peri)",
        "- speed, 3.2b peri: failed (out of memory)",
        "- cost: not run (3 s left)",
        "- training: cut off",
        "- filters: no results",
        "- machine: no results",
    ):
        assert line in lines
