"""A job that is restarted too often, or again and again without a new checkpoint, ends itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import progress
from launch.progress import Ending, Limits

THREE = Limits(restarts=None, without_progress=3)


def checkpoint(run: Path, step: int) -> None:
    (run / f"checkpoints/step_{step:06d}").mkdir(parents=True)


def starts_until_refused(run: Path, ending: Ending, limits: Limits = THREE, *, job: str = "1", most: int = 9) -> int:
    """Start a job, and again each time it may restart; return the number of starts."""
    for number in range(most):
        if progress.note_start(run, job=job, limits=limits):
            return number
        if progress.note_ending(run, job=job, ending=ending, limits=limits):
            return number + 1
    return most


def test_the_newest_complete_checkpoint_counts(tmp_path: Path) -> None:
    assert progress.newest_step(tmp_path) == 0
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 12)
    (tmp_path / "checkpoints/step_000020.partial").mkdir()
    assert progress.newest_step(tmp_path) == 12


@pytest.mark.parametrize("ending", ["stopped early", "time limit", "node lost"])
def test_restarts_without_progress_are_limited(tmp_path: Path, ending: Ending) -> None:
    checkpoint(tmp_path, 5)
    assert starts_until_refused(tmp_path, ending) == 4
    reason = progress.note_start(tmp_path, job="1", limits=THREE)
    assert reason is not None
    assert "no progress after 3 restarts of job 1 in a row" in reason
    assert "the newest checkpoint is still that of step 5" in reason


def test_a_new_checkpoint_resets_the_count(tmp_path: Path) -> None:
    for step in range(1, 6):
        assert progress.note_start(tmp_path, job="1", limits=THREE) is None
        checkpoint(tmp_path, step)
        assert progress.note_ending(tmp_path, job="1", ending="stopped early", limits=THREE) is None
    assert starts_until_refused(tmp_path, "stopped early") == 4  # the first of them after progress


def test_a_checkpoint_older_than_the_best_is_no_progress(tmp_path: Path) -> None:
    """A newest checkpoint that is damaged, deleted and written again would otherwise never count."""
    checkpoint(tmp_path, 9)
    for _ in range(4):
        assert progress.note_start(tmp_path, job="1", limits=THREE) is None
        progress.note_ending(tmp_path, job="1", ending="node lost", limits=THREE)
    (tmp_path / "checkpoints/step_000009").rmdir()
    assert progress.note_start(tmp_path, job="1", limits=THREE) is not None
    checkpoint(tmp_path, 9)
    assert progress.note_start(tmp_path, job="1", limits=THREE) is not None


@pytest.mark.parametrize("ending", ["preempted", "unknown"])
def test_a_preempted_job_is_only_limited_in_all(tmp_path: Path, ending: Ending) -> None:
    assert starts_until_refused(tmp_path / "a", ending) == 9
    assert starts_until_refused(tmp_path / "b", ending, Limits(restarts=5, without_progress=0)) == 6


def test_a_start_that_slurm_decides_on_is_limited_too(tmp_path: Path) -> None:
    """Where the batch script is killed too, no ending is recorded."""
    limits = Limits(restarts=2, without_progress=0)
    assert [progress.note_start(tmp_path, job="1", limits=limits) for _ in range(3)] == [None, None, None]
    reason = progress.note_start(tmp_path, job="1", limits=limits)
    assert reason is not None
    assert "restarted 2 times, the limit set by `restarts`" in reason


def test_progress_does_not_lift_the_limit_in_all(tmp_path: Path) -> None:
    limits, refused = Limits(restarts=3, without_progress=3), 0
    for step in range(1, 7):
        if progress.note_start(tmp_path, job="1", limits=limits):
            refused = step
            break
        checkpoint(tmp_path, step)
    assert refused == 5  # the start, three restarts


def test_no_limits_and_no_restarts(tmp_path: Path) -> None:
    assert starts_until_refused(tmp_path / "a", "stopped early", Limits(None, None), most=50) == 50
    assert starts_until_refused(tmp_path / "b", "stopped early", Limits(0, None)) == 1
    assert starts_until_refused(tmp_path / "c", "stopped early", Limits(None, 0)) == 1


def test_a_new_submission_and_another_array_task_begin_to_count_anew(tmp_path: Path) -> None:
    assert starts_until_refused(tmp_path, "stopped early", job="77_0") == 4
    assert starts_until_refused(tmp_path, "stopped early", job="77_1") == 4
    assert starts_until_refused(tmp_path, "stopped early", job="78_0") == 4


@pytest.mark.parametrize(
    "text", ['{"job": ', "3", '{"job": "1", "steps": [0, 0, 0, 0]}', '{"job": "1", "starts": [3]}']
)
def test_a_damaged_record_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/starts.json").write_text(text)
    assert progress.note_start(tmp_path, job="1", limits=THREE) is None
