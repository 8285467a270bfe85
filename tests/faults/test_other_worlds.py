"""Killed on two ranks, gone on with on one, killed again, finished on two: the run of an unbroken world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import HANG_SECONDS, kill_all, losses, rows, training, wait_until
from tests.tiny import tiny_file

SETTINGS = ["steps=60", "checkpoint.every=4", "checkpoint.keep=null", "evaluate_every=20"]
KEYS = ("loss", "grad_norm", "samples_hash")


def figures(run: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: {key: row[key] for key in KEYS} for row in rows(run) if "loss" in row}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_then_one_then_two(tmp_path: Path, stage: int) -> None:
    """Measured worst case over 60 steps: loss 1.0e-6, gradient norm 8.5e-5 relative.

    That is rounding that training has let grow: one rank without a kill differs from two by 7.5e-7 and 5.2e-5. A step
    lost or taken twice would show as 3 %, by which the loss of one step differs from the next (median).
    """
    path, run = tiny_file(tmp_path), tmp_path / "runs/tiny"
    settings = [*SETTINGS, f"engine.zero_stage={stage}"]
    with training(path, [*settings, "name=unbroken"], ranks=2) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    for ranks, until in ((2, 15), (1, 35)):
        # One rank takes all samples in one pass: by the same passes as two it would not even round otherwise.
        with training(path, [*settings, f"micro_batch_size={8 // ranks}"], ranks=ranks) as process:
            wait_until(lambda until=until: max(losses(run), default=0) >= until)
            kill_all(process)
    with training(path, settings, ranks=2) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    starts = [event for event in rows(run, "events") if event["event"] in ("start", "resume")]
    assert [event["world_size"] for event in starts] == [2, 1, 2]
    assert 0 < starts[1]["step"] < starts[2]["step"]
    expected, seen = figures(tmp_path / "runs/unbroken"), figures(run)
    assert list(seen) == list(range(1, 61))
    worst = {key: max(abs(seen[step][key] / expected[step][key] - 1) for step in seen) for key in ("loss", "grad_norm")}
    print(worst)
    assert worst["loss"] < 1e-5
    assert worst["grad_norm"] < 1e-3
    assert all(seen[step]["samples_hash"] == expected[step]["samples_hash"] for step in seen)
