"""Batches whose loss is NaN, in a run of two ranks that is killed on the way: all skip them, the same ones again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.processes import HANG_SECONDS, kill_all, losses, rows, training, validations, wait_until
from tests.tiny import tiny_file

SETTINGS = ["steps=40", "checkpoint.every=4", "checkpoint.keep=null", "evaluate_every=20", "micro_batch_size=2"]


def skips(run: Path) -> dict[int, dict[str, Any]]:
    """Skipped steps and their samples; a step that was repeated after a kill says the same again."""
    found: dict[int, dict[str, Any]] = {}
    for event in rows(run, "events"):
        if event["event"] == "skip":
            told = {key: event[key] for key in ("reason", "samples", "suspects")}
            assert found.setdefault(event["step"], told) == told
    return found


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.nightly), pytest.param(3, marks=pytest.mark.slow)])
def test_poison_is_skipped_by_all_ranks_and_again_after_a_kill(tmp_path: Path, stage: int) -> None:
    path, run, unbroken = tiny_file(tmp_path), tmp_path / "runs/tiny", tmp_path / "runs/unbroken"
    settings = [*SETTINGS, f"engine.zero_stage={stage}"]
    with training(path, [*settings, "name=unbroken"], ranks=2, fault="poison") as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    first = min(skips(unbroken))
    with training(path, settings, ranks=2, fault="poison") as process:
        wait_until(lambda: max(losses(run), default=0) > first + 4)  # behind a checkpoint that knows of a skip
        kill_all(process)
    with training(path, settings, ranks=2, fault="poison") as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    assert next(event["step"] for event in rows(run, "events") if event["event"] == "resume") > first
    assert (skips(run), losses(run), validations(run)) == (skips(unbroken), losses(unbroken), validations(unbroken))
    _skipped_steps_reached_no_weight(run)


def _skipped_steps_reached_no_weight(run: Path) -> None:
    skipped, by_step = skips(run), {row["step"]: row for row in rows(run) if "loss" in row}
    assert 4 < len(skipped) < 30
    for step, told in skipped.items():
        assert told["reason"] == "the loss is not finite"
        assert len(told["samples"]) == 8
        assert set(told["suspects"]) < set(told["samples"])
        assert by_step[step]["grad_norm"] is None
    # A skipped step changes nothing: the checkpoint counts the others, and on no rank a number is lost.
    last = run / "checkpoints/step_000040"
    assert by_step[40]["skipped"] == len(skipped)
    assert json.loads((last / "manifest.json").read_text())["updates"] == 40 - len(skipped)
    for rank in (0, 1):
        tensors = load_file(last / f"rank_{rank:05d}.safetensors")
        assert any(name.startswith("exp_avg/") for name in tensors)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
