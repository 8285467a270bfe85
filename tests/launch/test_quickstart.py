"""The quickstart: its sweep, the run that it exports, and the order of its commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import quickstart
from launch.sweep.members import members, runs_of
from launch.sweep.sweep_file import read_sweep

ROOT = Path(__file__).parents[2]
LOSSES = {"placement-peri_lr-3e-2": 5.5, "placement-peri_lr-3e-3": 5.2, "placement-pre_lr-3e-3": 4.9}


def write_losses(losses: dict[str, float | None]) -> None:
    """Write the metrics of finished runs into the current folder: a validation loss, and a row of training after it."""
    for name, loss in losses.items():
        folder = quickstart.RUNS / name
        folder.mkdir(parents=True)
        rows = [{"step": 25, "validation_loss": 1.0}, {"step": 50, "validation_loss": loss}, {"step": 50, "loss": 2.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Return the commands that the quickstart runs; they do nothing here."""
    commands: list[list[str]] = []

    def record(command: Sequence[str]) -> int:
        commands.append(list(command))
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "run", record)
    return commands


def test_the_sweep_is_three_placements_at_two_rates_a_factor_of_ten_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(quickstart.SWEEP)
    loaded = runs_of(members(sweep))
    assert [member.folder for member in loaded] == [
        quickstart.RUNS / f"placement-{placement}_lr-{rate}"
        for placement in ("pre", "post", "peri")
        for rate in ("3e-3", "3e-2")
    ]
    low, high = sorted({member.config.optim.lr for member in loaded})
    assert high / low == pytest.approx(10)
    assert not sweep.report  # the quickstart writes it


def test_it_trains_then_exports_the_better_peri_run_then_reports(ran: list[list[str]]) -> None:
    write_losses(dict(LOSSES))
    (quickstart.RUNS / "report").mkdir()  # an earlier one is no run
    assert quickstart.main() == 0
    sweep, export, report = ran
    assert sweep[1:] == ["-m", "launch", "sweep", "configs/sweeps/quickstart.yaml"]
    peri = "runs/quickstart/placement-peri_lr-3e-3"
    assert export[1:5] == ["-m", "train.export", peri, "exported/quickstart"]
    runs = ["runs/quickstart/placement-peri_lr-3e-2", peri, "runs/quickstart/placement-pre_lr-3e-3"]
    assert report[1:] == ["-m", "analysis", "report", *runs, "--out", "runs/quickstart/report"]


def test_a_second_call_keeps_the_exported_model(ran: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    write_losses(dict(LOSSES))
    quickstart.EXPORTED.mkdir(parents=True)
    assert quickstart.main() == 0
    assert ["train.export" in command for command in ran] == [False, False]
    assert "exported/quickstart exists" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("low", "high", "better"), [(5.0, None, "3e-3"), (None, 5.0, "3e-2"), (5.0, 4.0, "3e-2"), (None, None, "3e-2")]
)
def test_a_run_without_a_finite_loss_is_exported_only_if_both_have_none(
    low: float | None, high: float | None, better: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_losses({"placement-peri_lr-3e-3": low, "placement-peri_lr-3e-2": high})
    assert quickstart.better_peri().name == f"placement-peri_lr-{better}"


@pytest.mark.parametrize("code", [1, 2, 75])
def test_a_command_that_fails_ends_it_with_its_exit_code(
    code: int, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "run", lambda command: ran.append(command) or code)
    assert quickstart.main() == code
    assert len(ran) == 1


def test_ctrl_c_waits_for_the_command_and_returns_its_exit_code() -> None:
    script = "import os, signal, sys, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(0.2); sys.exit(75)"
    assert quickstart.run([sys.executable, "-c", script]) == 75
