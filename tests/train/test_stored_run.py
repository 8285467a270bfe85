"""A run that an older version wrote (commit 6843a80) resumes, is judged, exported and reported.

tests/train/stored_run is that version's run folder: six steps of a tiny decoder on `write_corpus`'s text, its last
checkpoint and its events after step 3 taken away.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis.report.report import make_report
from analysis.runs import read_run
from tests.faults.processes import ROOT, losses, rows, validations
from tests.tiny import write_corpus

STORED = Path(__file__).parent / "stored_run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to work in, with the run below it as it was left and the text that it read."""
    shutil.copytree(STORED, tmp_path / "runs/stored")
    write_corpus(tmp_path / "corpus")
    return tmp_path


def command(folder: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_resumes_and_repeats_its_lost_steps(folder: Path) -> None:
    """To the last digit on the machine that wrote it; another processor may round otherwise."""
    command(folder, "train", "runs/stored/config.yaml")
    run = folder / "runs/stored"
    assert [event["step"] for event in rows(run, "events") if event["event"] == "resume"] == [3]
    assert losses(run) == pytest.approx(losses(STORED), rel=1e-5)
    assert validations(run) == pytest.approx(validations(STORED), rel=1e-5)
    assert hashes(run) == hashes(STORED)
    assert (run / "settings.json").is_file()


def hashes(run: Path) -> dict[int, str]:
    """Hash of the samples of each training step."""
    return {row["step"]: row["samples_hash"] for row in rows(run) if "samples_hash" in row}


def test_it_is_exported_and_reported(folder: Path) -> None:
    command(folder, "train.export", "runs/stored", "exported")
    model = AutoModelForCausalLM.from_pretrained(folder / "exported", trust_remote_code=True)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    page = make_report([str(folder / "runs/stored")], folder / "report").page
    assert "settings.json is missing" in page.read_text()
    assert read_run(folder / "runs/stored").setting_facts is None
    assert json.loads((folder / "runs/stored/environment.json").read_text())["git_sha"].startswith("6843a80")
