"""A disk that is full: training goes on with the last good checkpoint and says so, or stops where that was asked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.kills import intact_steps
from tests.faults.processes import HANG_SECONDS, losses, rows, training
from tests.tiny import tiny_file
from train.observe.jsonl import LineFile

CHECKPOINT_BYTES = 3 * 4 * 39_200  # weights and two moments of the tiny decoder in fp32


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for logs, and two checkpoints and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={int(2.5 * CHECKPOINT_BYTES) + 200_000}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


PROBES_OFF = ["probes.activations_every=null", "probes.gradients_every=null"]
SETTINGS = ["steps=12", "checkpoint.every=2", "checkpoint.keep=null", "evaluate_every=12", *PROBES_OFF]


@pytest.mark.slow
def test_training_goes_on_with_the_last_good_checkpoint(tmp_path: Path, small_disk: Path) -> None:
    path = tiny_file(tmp_path)
    with training(path, [*SETTINGS, f"output_dir={small_disk}"], ranks=2) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    run = small_disk / "tiny"
    assert process.returncode == 1, said  # the last checkpoint could not be written either: not done
    assert "TRAINING CONTINUES WITHOUT A NEW CHECKPOINT" in said
    assert "No space left on device" in said
    assert intact_steps(run / "checkpoints") == [2, 4]
    assert max(losses(run)) == 12
    assert [event["step"] for event in rows(run, "events") if event["event"] == "not_saved"]
    # With room again, the same command goes on from step 4 and finishes.
    size = f"remount,size={10 * CHECKPOINT_BYTES}"
    subprocess.run(["mount", "-o", size, str(small_disk)], check=True)
    with training(path, [*SETTINGS, f"output_dir={small_disk}"], ranks=2) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    assert [event["step"] for event in rows(run, "events") if event["event"] == "resume"] == [4]


@pytest.mark.slow
def test_it_stops_where_that_was_asked(tmp_path: Path, small_disk: Path) -> None:
    path = tiny_file(tmp_path)
    settings = [*SETTINGS, "steps=400", f"output_dir={small_disk}", "checkpoint.when_not_saved=stop"]
    with training(path, settings, ranks=2) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    run = small_disk / "tiny"
    assert process.returncode == 1, said
    assert "the last complete checkpoint, step_000004, is intact" in said
    assert max(losses(run)) < 20
    assert intact_steps(run / "checkpoints") == [2, 4]


def test_lines_wait_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = LineFile(path)
    lines.append({"step": 1})
    real = lines._file

    class Full:
        """Takes three bytes of a line and no more."""

        def fileno(self) -> int:
            return real.fileno()

        def write(self, data: bytes) -> int:
            return real.write(data[:3])

    monkeypatch.setattr(lines, "_file", Full())
    lines.append({"step": 2})
    lines.append({"step": 3})
    assert path.read_text() == '{"step": 1}\n'
    monkeypatch.setattr(lines, "_file", real)
    lines.append({"step": 4})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
