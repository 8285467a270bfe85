"""A job that is restarted again and again without a new checkpoint ends itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import progress


def checkpoint(run: Path, step: int) -> None:
    (run / f"checkpoints/step_{step:06d}").mkdir(parents=True)


def test_the_newest_complete_checkpoint_counts(tmp_path: Path) -> None:
    assert progress.newest_step(tmp_path) == 0
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 12)
    (tmp_path / "checkpoints/step_000020.partial").mkdir()
    assert progress.newest_step(tmp_path) == 12


def test_three_restarts_without_progress_are_the_end(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    assert [progress.note_start(tmp_path, job="1") for _ in range(3)] == [None, None, None]
    why = progress.note_start(tmp_path, job="1")
    assert why is not None
    assert "3 restarts of job 1 without progress: the newest checkpoint is still that of step 5" in why


def test_a_new_checkpoint_and_a_new_submission_begin_anew(tmp_path: Path) -> None:
    for step in range(1, 6):
        assert progress.note_start(tmp_path, job="1") is None
        checkpoint(tmp_path, step)
    assert [progress.note_start(tmp_path, job="1") for _ in range(3)] == [None, None, None]
    assert progress.note_start(tmp_path, job="1") is not None
    assert progress.note_start(tmp_path, job="2") is None


def test_a_damaged_note_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/starts.json").write_text('{"job": ')
    assert progress.note_start(tmp_path, job="1") is None


def test_the_command_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert [progress.main([str(tmp_path)]) for _ in range(4)] == [0, 0, 0, 1]
    assert "there is no checkpoint yet" in capsys.readouterr().err
