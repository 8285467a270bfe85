"""The decision table of docs/decisions/0008-slurm.md: what a start leaves behind, and whether the job is requeued."""

from __future__ import annotations

import pytest

from launch.slurm.decision import decide
from launch.slurm.evidence import Evidence, NodeEnding, Stop
from launch.slurm.job import JobState

RUNNING = JobState()
PREEMPTED = JobState(is_preempted=True)  # in its grace time


def nodes(*codes: int | None) -> dict[str, NodeEnding]:
    """Return what the launchers recorded, at times 100, 101, ..., by node; None: nothing."""
    return {f"n{n}": NodeEnding(code, 100.0 + n) for n, code in enumerate(codes) if code is not None}


def ending(
    code: int,
    *codes: int | None,
    state: JobState = RUNNING,
    stop: Stop | None = None,
    lost: tuple[str, ...] = (),
    restarts: int = 0,
) -> str | None:
    evidence = Evidence(code=code, state=state, restarts=restarts, stop=stop, nodes=nodes(*codes))
    return decide(evidence, lost).ending


@pytest.mark.parametrize("codes", [(1,), (1, 1), (1, None), (None, 1), (1, 75), (75, 1), (None, None), (137, 1, None)])
def test_a_run_that_ends_itself_is_not_requeued_on_any_number_of_nodes(codes: tuple[int | None, ...]) -> None:
    worst = max([1, *(code for code in codes if code is not None)])
    assert ending(worst, *codes) is None
    assert ending(143, *codes) is None  # the launcher of another node was terminated


def test_ranks_that_stop_in_preparation_because_another_node_failed_do_not_hide_the_failure() -> None:
    """Srun terminates the first node once the second has failed: its ranks record a stop, and 75 is the worst code."""
    assert ending(75, 75, 1, stop=Stop(0, time=102.0)) is None
    assert ending(1, 75, 1, stop=Stop(0, time=102.0)) is None
    assert ending(75, 75, 1, stop=Stop(0, time=99.0)) == "stopped early"  # the stop came first
    assert ending(75, 75, 75, stop=Stop(0, time=102.0)) == "stopped early"


def test_a_job_that_ended_itself_returns_the_code_of_the_node_that_failed_first() -> None:
    """Not the highest, 75: that is for runs which resume."""
    decision = decide(Evidence(code=75, stop=Stop(0, time=102.0), nodes=nodes(75, 1)))
    assert (decision.ending, decision.code) == (None, 1)
    assert decide(Evidence(code=143, nodes=nodes(143, 1))).code == 143
    assert decide(Evidence(code=143, nodes=nodes(None, 2))).code == 2
    assert decide(Evidence(code=137, nodes={})).code == 137


def test_a_stop_with_a_checkpoint_counts_whatever_follows_it() -> None:
    assert ending(75, 75, 75, stop=Stop(8, time=99.0)) == "stopped early"
    assert ending(1, 1, 75, stop=Stop(8, time=103.0)) == "stopped early"
    assert ending(137, stop=Stop(8, time=99.0)) == "stopped early"


def test_a_stop_before_any_rank_had_started_leaves_no_record() -> None:
    assert ending(75, 75, 75) == "stopped early"
    assert ending(75, 75, 1) is None


@pytest.mark.parametrize("code", [1, 143, 137])
def test_a_lost_node_is_requeued_whatever_its_loss_did_to_the_others(code: int) -> None:
    assert ending(code, 1, None, lost=("n1",)) == "node lost"
    assert "node n1 does not respond" in decide(Evidence(code=code, nodes=nodes(1)), ["n1"]).reason


def test_a_refused_run_is_not_requeued() -> None:
    assert ending(2, 2, 2) is None
    assert ending(143, None, 2, lost=("n0",)) is None
    assert ending(2, state=JobState(is_ending=True, is_preempted=True)) is None


def test_a_finished_run_is_not_requeued() -> None:
    assert ending(0, 0, 0) is None
    assert ending(0, 0, 0, state=JobState(is_ending=True, is_preempted=True)) is None


def test_a_preempted_job_is_requeued_in_its_grace_time_and_after_it() -> None:
    assert ending(75, 75, 75, state=PREEMPTED, stop=Stop(8, time=99.0)) == "preempted"
    assert ending(137, None, None, state=JobState(is_ending=True, is_preempted=True)) == "preempted"


def test_a_run_that_ends_itself_in_its_grace_time_is_not_requeued() -> None:
    assert ending(1, 1, 1, state=PREEMPTED) is None


def test_what_slurm_has_requeued_is_left_alone() -> None:
    state = JobState(is_ending=True, restarts=3, is_preempted=True)
    assert ending(75, 75, stop=Stop(8, time=99.0), state=state, restarts=2) is None
    assert ending(75, 75, stop=Stop(8, time=99.0), state=state, restarts=3) == "preempted"


def test_a_time_limit_that_came_too_early_is_requeued() -> None:
    assert ending(137, None, state=JobState(is_ending=True, is_out_of_time=True)) == "time limit"


def test_a_cancelled_job_is_not_requeued() -> None:
    assert ending(75, 75, 75, stop=Stop(8, time=99.0), state=JobState(is_ending=True)) is None


def test_the_reason_names_the_rank_that_failed() -> None:
    decision = decide(Evidence(code=1, nodes=nodes(1)), failure="rank 1 (n0) failed at step 3: ValueError: bad")
    assert decision.ending is None
    assert "ended itself" in decision.reason
    assert "rank 1 (n0) failed at step 3: ValueError: bad" in decision.reason
