"""SIGKILL for a program that writes a folder: the folder is complete or absent, and the next attempt succeeds."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from analysis.__main__ import main as analysis
from tests.faults.processes import ROOT, kill_all, training, wait_until
from tests.tiny import tiny_file
from train.export.__main__ import main as export

EXPORTED = {"config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    with training(tiny_file(folder), []) as process:
        assert process.wait() == 0
    return folder / "runs/tiny"


def is_complete(folder: Path, what: str) -> bool:
    """Whether a folder holds all that its program writes, and all of it whole."""
    if what == "export":
        assert load_file(folder / "model.safetensors")
        return {path.name for path in folder.iterdir()} >= EXPORTED
    page = (folder / "index.html").read_text()
    return page.rstrip().endswith("</html>") and bool(list(folder.rglob("*.svg")) or "<svg" in page or "<img" in page)


@pytest.mark.parametrize(
    "what", [pytest.param("export", marks=pytest.mark.slow), pytest.param("report", marks=pytest.mark.nightly)]
)
def test_a_killed_program_leaves_no_half_folder(run: Path, tmp_path: Path, what: str) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown where the test fails
    chance, halves = random.Random(seed), 0
    for number in range(4):
        out = tmp_path / str(number)
        command = [sys.executable, "-m", "tests.faults.repeat", what, str(run), str(out)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda out=out: (out / "0").exists() or process.poll() is not None)
            time.sleep(chance.uniform(0.0, 1.0))
            process.kill()
        finished = [path for path in out.iterdir() if path.name.isdecimal()]
        halves += len(list(out.iterdir())) - len(finished)
        assert finished
        assert all(is_complete(path, what) for path in finished)
        again = str(out / str(len(finished)))  # what the killed one was writing
        code = export([str(run), again]) if what == "export" else analysis(["report", str(run), "--out", again])
        assert code == 0
        assert is_complete(Path(again), what)
        assert all(path.name.isdecimal() for path in out.iterdir())  # the rest of the killed one is gone
    print(f"{halves} of 4 kills left a half folder under another name")


@pytest.mark.nightly
def test_a_killed_run_leaves_no_half_weights(tmp_path: Path) -> None:
    path, weights = tiny_file(tmp_path), tmp_path / "runs/tiny/weights"
    settings = ["steps=40", "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.weights_every=1"]
    chance = random.Random(0)
    for _ in range(3):
        known = len(list(weights.glob("step_*")))
        with training(path, settings) as process:
            wait_until(lambda known=known: len(list(weights.glob("step_*"))) > known + 2, pause=0.001)
            time.sleep(chance.uniform(0.0, 0.1))
            kill_all(process)
        assert all(load_file(folder / "model.safetensors") for folder in weights.glob("step_??????"))
    with training(path, settings) as process:
        assert process.wait() == 0
    assert sorted(folder.name for folder in weights.iterdir()) == [f"step_{step:06d}" for step in range(1, 41)]
