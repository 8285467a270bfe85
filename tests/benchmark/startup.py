"""Seconds that a user waits: for `--help`, before which a mistake is reported, and for the first step of a run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.tiny import tiny_file

STARTUP_ARM = "start-up"
COMMANDS = (
    "train",
    "train.data",
    "train.evaluate",
    "train.export",
    "train.convert",
    "launch local",
    "launch slurm",
    "launch plan",
    "launch sweep",
    "analysis report",
    "analysis inspect",
)
IMPORTS = "import torch, deepspeed, transformers, datasets"  # what a run cannot do without
FIRST_STEPS = {"fresh": "a fresh run", "resumed": "a resumed run"}
_IMPORTS = "imports"


def measure_startup() -> dict[str, float]:
    """Return the seconds of each command's `--help`, of the imports, and until the first step is logged."""
    seconds = {command: _seconds(["-m", *command.split(), "--help"]) for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_file(Path(folder))
        settings = ["log_every=1", "checkpoint.every=2", "probes.activations_every=null", "probes.gradients_every=null"]
        _until_step(path, [*settings, "name=first"], 1)  # prepares the data
        seconds["fresh"] = _until_step(path, settings, 1)
        _end_after_save(path)
        seconds["resumed"] = _until_step(path, settings, 3)
        seconds[_IMPORTS] = _seconds(["-c", IMPORTS])
    return seconds


def _seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _until_step(path: Path, settings: list[str], step: int) -> float:
    """Start a run and return the seconds until the row of a step is written; the run then goes on to its end."""
    name = next((s.partition("=")[2] for s in settings if s.startswith("name=")), "tiny")
    metrics, began = path.parent / "runs" / name / "metrics.jsonl", time.perf_counter()
    command = [sys.executable, "-m", "train", str(path), *settings]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not _has_row(metrics, step) and process.poll() is None:
            time.sleep(0.005)
        took = time.perf_counter() - began
    assert process.returncode == 0
    return took


def _has_row(metrics: Path, step: int) -> bool:
    return metrics.exists() and f'"step": {step},' in metrics.read_text()


def _end_after_save(path: Path) -> None:
    """Put a finished run back to its checkpoint of step 2, as after a kill."""
    run = path.parent / "runs/tiny"
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.name != "step_000002":
            checkpoint.rename(checkpoint.with_suffix(".partial"))
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(row for row in rows if '"step": 1,' in row or '"step": 2,' in row))


def startup_table(rounds: list[dict[str, float]]) -> str:
    """Return the seconds as Markdown: medians over the rounds, and their range."""
    lines = ["| `--help` of `python -m` | s, median | lowest | highest |", "|---|---|---|---|"]
    lines += [_row(command, [row[command] for row in rounds]) for command in COMMANDS]
    lines += ["", "| seconds until | median | lowest | highest |", "|---|---|---|---|"]
    lines.append(_row(f"`{IMPORTS}`", [row[_IMPORTS] for row in rounds]))
    for key, what in FIRST_STEPS.items():
        lines.append(_row(f"the first step of {what} is logged", [row[key] for row in rounds]))
        lines.append(_row("... as a multiple of the imports", [row[key] / row[_IMPORTS] for row in rounds]))
    return "\n".join(lines)


def _row(name: str, seconds: list[float]) -> str:
    return f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |"
