"""Checkpoint files that are cut off or changed on the disk: the one before counts, and the run says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.processes import HANG_SECONDS, kill_all, losses, rows, training, validations, wait_until
from tests.tiny import tiny_file

SETTINGS = ["steps=40", "checkpoint.every=4", "checkpoint.keep=null", "evaluate_every=20"]


def cut(content: bytes) -> bytes:
    return content[:-100]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.nightly), pytest.param(3, marks=pytest.mark.slow)])
def test_damaged_checkpoints_are_passed_over(tmp_path: Path, stage: int) -> None:
    """The newest has one flipped bit, the one before is truncated, each in the file of another rank."""
    path, run, unbroken = tiny_file(tmp_path), tmp_path / "runs/tiny", tmp_path / "runs/unbroken"
    settings = [*SETTINGS, f"engine.zero_stage={stage}"]
    with training(path, [*settings, "name=unbroken"], ranks=2) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    checkpoints = run / "checkpoints"
    with training(path, settings, ranks=2) as process:
        wait_until(lambda: len(complete(checkpoints)) >= 3)
        kill_all(process)
    third, second, newest = complete(checkpoints)[-3:]
    for folder, rank, harm in ((newest, 1, flip), (second, 0, cut)):
        file = checkpoints / folder / f"rank_{rank:05d}.safetensors"
        file.write_bytes(harm(file.read_bytes()))
    with training(path, settings, ranks=2) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    told = [
        f"{newest} is damaged and was ignored: rank_00001.safetensors does not match its checksum",
        f"{second} is damaged and was ignored: rank_00000.safetensors does not match its checksum",
    ]
    assert [event["reason"] for event in rows(run, "events") if event["event"] == "pass_over"] == told
    assert all(f"[rank 0] {line}" in said for line in told)
    assert [event["step"] for event in rows(run, "events") if event["event"] == "resume"] == [int(third[5:])]
    assert (checkpoints / f"{newest}.damaged").is_dir()
    assert (losses(run), validations(run)) == (losses(unbroken), validations(unbroken))


def complete(checkpoints: Path) -> list[str]:
    return sorted(folder.name for folder in checkpoints.glob("step_*") if not folder.suffix)
