"""A rank that hangs or dies ends the run in bounded time; the last line names it, stacks.txt shows where it hung."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults.processes import HANG_SECONDS
from tests.tiny import tiny_file
from train.checkpoint.checkpoint import CheckpointError
from train.config.load import load
from train.config.run import WatchdogConfig
from train.ranks.stopping import StoppedInPreparationError
from train.ranks.watchdog import peers as peers_module
from train.ranks.watchdog.collectives import Call, Trace, read_trace, trace_path
from train.ranks.watchdog.heartbeat import BEAT_SECONDS, Answer, Heartbeat, now, path_of, write
from train.ranks.watchdog.peers import SILENCE_SECONDS, Peers
from train.ranks.watchdog.verdict import Peer, judge
from train.ranks.watchdog.watchdog import Watchdog, is_lost_contact, process_group_timeout

ROOT = Path(__file__).parents[4]
STEP_DEADLINE = 6.0
DEADLINES = [f"watchdog.step={STEP_DEADLINE}", "watchdog.first_step=60"]


class Ended(NamedTuple):
    codes: list[int | None]  # None: had to be killed
    log: list[str]
    seconds: float  # from the last progress seen to the end of the ranks that answer


def run_two_ranks(folder: Path, fault: str, *settings: str, answering: Sequence[int] = (0, 1)) -> Ended:
    """Train on two ranks until those that answer have ended; the others are killed then."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    module = "tests.train.ranks.watchdog.hanging_rank"
    command = [sys.executable, "-m", module, fault, str(tiny_file(folder)), *DEADLINES, *settings]
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with (folder / "log").open("w") as log:
        ranks = [
            subprocess.Popen(
                command, cwd=ROOT, stderr=log, stdout=log, env={**os.environ, **meeting, "RANK": r, "LOCAL_RANK": r}
            )
            for r in ("0", "1")
        ]
        try:
            for rank in answering:
                ranks[rank].wait(timeout=HANG_SECONDS)
            ended = time.time()
            codes = [rank.poll() if number in answering else None for number, rank in enumerate(ranks)]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    metrics = folder / "runs/tiny/metrics.jsonl"
    return Ended(codes, (folder / "log").read_text().splitlines(), ended - metrics.stat().st_mtime)


def heads(folder: Path) -> list[str]:
    text = (folder / "runs/tiny/stacks.txt").read_text()
    return [line for line in text.splitlines() if line.startswith("====")]


# How long after its deadline a run may take to end: silent ranks are awaited, then answers are read, 14 s together. The
# rest is for a busy machine: this guards against an end that does not come.
MARGIN = SILENCE_SECONDS + 2 * BEAT_SECONDS + 120


@pytest.mark.slow
def test_a_rank_that_blocks_outside_a_collective_is_named(tmp_path: Path) -> None:
    ended = run_two_ranks(tmp_path, "fifo")
    assert ended.codes == [1, 1]
    assert STEP_DEADLINE <= ended.seconds <= STEP_DEADLINE + MARGIN
    assert ended.log[-1].startswith(f"[rank 0] rank 1 ({socket.gethostname()}, pid ")
    assert "blocks the others in step 5, at tests/train/ranks/watchdog/hanging_rank.py" in ended.log[-1]
    assert "while rank 0 waits in all_reduce" in ended.log[-1]
    text = (tmp_path / "runs/tiny/stacks.txt").read_text()
    assert "in read_a_fifo" in text.split("==== rank 1")[1]
    assert "in global_weight" not in text.split("==== rank 1")[1]
    assert len(heads(tmp_path)) == 2
    assert all("last collective: all_reduce of" in head or "reduce" in head for head in heads(tmp_path))


@pytest.mark.slow
def test_a_rank_that_leaves_out_a_collective_is_named(tmp_path: Path) -> None:
    """The other waits in one group, it waits in DeepSpeed's: neither is told of by gloo."""
    ended = run_two_ranks(tmp_path, "skip")
    assert ended.codes == [1, 1]
    assert ended.seconds <= STEP_DEADLINE + MARGIN
    assert ended.log[-1].startswith(f"[rank 0] rank 1 ({socket.gethostname()}, pid ")
    assert "skipped a collective" in ended.log[-1]
    assert "where rank 0 called all_reduce of 1 elements" in ended.log[-1]
    text = (tmp_path / "runs/tiny/stacks.txt").read_text()
    assert "in global_weight" in text.split("==== rank 1")[0]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "settings"), [("skip", ["engine.zero_stage=3"]), ("skip_size", [])])
def test_a_rank_that_leaves_out_a_collective_is_named_when_gloo_aborts(
    tmp_path: Path, fault: str, settings: list[str]
) -> None:
    """Sizes that do not match end one of the two on the spot, maybe the innocent one: traces outlive it."""
    ended = run_two_ranks(tmp_path, fault, *settings)
    assert sorted(ended.codes, key=str) == [-signal.SIGABRT, 1]
    assert ended.seconds <= MARGIN
    assert "rank 1 (" in ended.log[-1]
    assert "skipped a collective" in ended.log[-1]


@pytest.mark.slow
def test_a_suspended_rank_is_named(tmp_path: Path) -> None:
    ended = run_two_ranks(tmp_path, "stop", answering=[0])
    assert ended.codes == [1, None]
    assert ended.seconds <= STEP_DEADLINE + MARGIN
    assert ended.log[-1].startswith(f"[rank 0] rank 1 ({socket.gethostname()}, pid ")
    assert "stopped responding in step 5" in ended.log[-1]
    assert "(no answer)" in (tmp_path / "runs/tiny/stacks.txt").read_text()


@pytest.mark.slow
def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    ended = run_two_ranks(tmp_path, "kill")
    assert ended.codes == [1, -signal.SIGKILL]
    assert ended.seconds <= MARGIN
    assert ended.log[-1].startswith(f"[rank 0] rank 1 ({socket.gethostname()}, pid ")
    assert "died in step 5" in ended.log[-1]
    assert "lost contact with another rank (" in ended.log[-2]  # no deadline had to pass: the connection broke


@pytest.mark.slow
def test_a_rank_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    ended = run_two_ranks(tmp_path, "fail")
    assert ended.codes == [1, 1]
    assert "failed in step 5: MemoryError: no memory left on this device" in ended.log[-1]


@pytest.mark.slow
def test_a_rank_that_holds_pythons_lock_ends_too(tmp_path: Path) -> None:
    settings = [f"watchdog.{phase}=20" for phase in ("preparation", "first_step", "evaluation", "save")]
    ended = run_two_ranks(tmp_path, "lock", *settings)
    assert ended.codes == [1, 1]
    assert ended.seconds <= 20 + 6 + MARGIN
    text = "\n".join(ended.log)
    assert "stopped responding in step 5" in text
    assert "in hold_the_lock" in text  # faulthandler's, on standard error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "settings"),
    [("slow_save", ["checkpoint.weights_every=4"]), ("slow_step", ["watchdog.step=null"])],
)
def test_what_is_slow_within_its_deadline_is_let_be(tmp_path: Path, fault: str, settings: list[str]) -> None:
    """Rank 0 saves for longer than a step may take, while rank 1 is at the next step; and no deadline at all."""
    ended = run_two_ranks(tmp_path, fault, *settings)
    assert ended.codes == [0, 0], ended.log
    assert not (tmp_path / "runs/tiny/stacks.txt").exists()
    beat = json.loads((tmp_path / "runs/tiny/heartbeat/rank_00001.json").read_text())
    assert (beat["state"], beat["phase"], beat["step"]) == ("finished", "save", 8)
    row = json.loads((tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()[0])
    assert row["slowest_host"] == socket.gethostname()
    assert not trace_path(tmp_path / "runs/tiny", 0).exists()


# ------------------------------------------------------------------------------------------------------ verdicts

A, B, C = ("0", "all_reduce", 1), ("1", "all_reduce", 500), ("0", "broadcast", 7)


def calls(*kinds: tuple[str, str, int]) -> list[Call]:
    return [Call(number, *kind) for number, kind in enumerate(kinds, start=1)]


def peer(rank: int, trace: Sequence[Call] = (), *, waiting: bool = True, **given: object) -> Peer:
    beat = Heartbeat(
        rank=rank,
        host="n1",
        pid=10 + rank,
        beat=1,
        time="",
        state="answering",
        phase="step",
        step=5,
        seconds=9,
        deadline=6,
        collective="",
    )
    answer = Answer(waiting=waiting, place="train/x.py:1 in f", stacks="", trace=[])
    return replace(Peer(rank, "alive", beat, answer, trace), **given)


def test_the_few_are_wrong() -> None:
    peers = [peer(0, calls(A, B, A)), peer(1, calls(A, B, C)), peer(2, calls(A, B, A))]
    assert judge(peers).ranks == [1]


def test_of_two_the_one_without_precedent_is_wrong() -> None:
    steps = (A, B, C, A, B, C)
    assert judge([peer(0, calls(*steps, A)), peer(1, calls(*steps, B))]).ranks == [1]
    assert judge([peer(0, calls(*steps, B)), peer(1, calls(*steps, A))]).ranks == [0]


def test_at_a_new_place_the_one_that_comes_later_otherwise_is_wrong() -> None:
    new = ("0", "barrier", 0)
    assert judge([peer(0, calls(A, B, C, A, B, C, new, B)), peer(1, calls(A, B, C, A, B, C, new, A))]).ranks == [0]


def test_a_rank_in_order_but_not_waiting_holds_the_others_up() -> None:
    verdict = judge([peer(0, calls(A, B)), peer(1, calls(A), waiting=False), peer(2, calls(A, B))])
    assert verdict.ranks == [1]
    assert "at train/x.py:1 in f, while rank 0 waits in all_reduce of 500 elements" in verdict.text


def test_of_ranks_on_gpus_the_one_with_fewer_calls_is_named() -> None:
    peers = [peer(0, calls(A, B), waiting=False), peer(1, calls(A), waiting=False)]
    assert judge(peers).ranks == [1]


def test_ranks_that_never_came_are_named_together() -> None:
    peers = [peer(0), Peer(1, "never"), Peer(2, "never")]
    assert judge(peers).text == "rank 1 and 1 more (ranks 2) never started"


def test_nobody_is_blamed_without_evidence() -> None:
    verdict = judge([peer(0, calls(A), waiting=False), peer(1, calls(A), waiting=False)])
    assert verdict.ranks == []
    assert verdict.text.startswith("no rank stands out: all 2 ranks respond, rank 0 (n1, pid 10) is in step 5")


# ------------------------------------------------------------------------------------------------------- looking


def write_beat(folder: Path, rank: int, beat: int, **given: Any) -> None:
    path = path_of(folder, rank)
    path.parent.mkdir(exist_ok=True)
    template = peer(rank).heartbeat
    assert template is not None
    write(path, replace(template, **{"beat": beat, "state": "running", "time": now(), **given}))


def test_a_rank_is_alive_while_its_heartbeat_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only once: a rank that saves for an hour may be suspended while it does."""
    seconds = [1000.0]
    monkeypatch.setattr(peers_module.time, "monotonic", lambda: seconds[0])
    for rank in (0, 1):
        write_beat(tmp_path, rank, 1)
    peers = Peers(tmp_path, 3, rank=0, host="here", began=time.time())
    assert [p.condition for p in peers.look()] == ["alive", "silent", "never"]
    write_beat(tmp_path, 1, 2)
    assert [p.condition for p in peers.look()] == ["alive", "alive", "never"]
    assert not peers.settled()
    seconds[0] += SILENCE_SECONDS + 1
    assert [p.condition for p in peers.look()] == ["alive", "silent", "never"]
    assert peers.settled()


def test_a_heartbeat_of_an_earlier_start_is_none(tmp_path: Path) -> None:
    for rank in (0, 1, 2):
        write_beat(tmp_path, rank, 1, time="2026-01-01T00:00:00+00:00", state="failed")
    peers = Peers(tmp_path, 3, rank=0, host="n1", began=time.time())
    write_beat(tmp_path, 2, 1, pid=os.getpid())
    assert [p.condition for p in peers.look()] == ["alive", "never", "alive"]


def test_a_process_that_is_gone_is_known_at_once_on_this_machine(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for rank in (0, 1, 2):
        write_beat(tmp_path, rank, 1, pid=ended.pid, host="here" if rank == 1 else "there")
    peers = Peers(tmp_path, 3, rank=0, host="here", began=time.time())
    assert [p.condition for p in peers.look()] == ["alive", "gone", "silent"]


def test_an_error_of_its_own_is_no_lost_contact() -> None:
    assert is_lost_contact(RuntimeError("Connection closed by peer [::1]:1"))
    assert not is_lost_contact(CheckpointError("could not be written (Broken pipe)"))
    assert not is_lost_contact(RuntimeError("shapes do not match"))


def test_rank_0_does_not_wait_for_ranks_that_never_start(tmp_path: Path) -> None:
    """What a rank does that was started by hand, or whose node never came up; the process group would wait an hour."""
    program = (
        "import sys, time; from pathlib import Path; from train.config.run import WatchdogConfig\n"
        "from train.ranks.watchdog import heartbeat; from train.ranks.watchdog.watchdog import Watchdog\n"
        "heartbeat.START_SECONDS = 3.0\n"
        "with Watchdog(WatchdogConfig(), Path(sys.argv[1]), rank=0, size=3): time.sleep(600)\n"
    )
    write_beat(tmp_path, 1, 1)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not all ranks have started within 3 s" in done.stderr
    assert done.stderr.splitlines()[-1] == "rank 2 never started"


# ------------------------------------------------------------------------------------------------------ settings


def test_the_process_group_waits_longer_than_any_deadline(tmp_path: Path) -> None:
    config = WatchdogConfig()
    longest = max(config.step or 0, config.first_step or 0, config.evaluation or 0, config.preparation or 0)
    assert process_group_timeout(config).total_seconds() > longest + SILENCE_SECONDS
    assert process_group_timeout(replace(config, save=None)).total_seconds() * 1000 < 2**31
    assert load(tiny_file(tmp_path), ["watchdog.step=null"]).watchdog.step is None


def test_a_heartbeat_tells_the_phase_and_an_orderly_end(tmp_path: Path) -> None:
    with Watchdog(WatchdogConfig(), tmp_path, rank=0, size=1) as watchdog:
        watchdog.enter("step", 1)
        watchdog.enter("step", 2)
        watchdog.enter("evaluation", 2)
    beat = json.loads((tmp_path / "heartbeat/rank_00000.json").read_text())
    assert (beat["phase"], beat["step"], beat["deadline"], beat["state"]) == ("evaluation", 2, 3600, "finished")
    assert not trace_path(tmp_path, 0).exists()


def test_an_error_is_told_and_passed_on(tmp_path: Path) -> None:
    watchdog = Watchdog(WatchdogConfig(), tmp_path, rank=0, size=1)
    with pytest.raises(ValueError, match="wrong"), watchdog:
        raise ValueError("wrong")
    beat = json.loads((tmp_path / "heartbeat/rank_00000.json").read_text())
    assert (beat["state"], beat["error"]) == ("failed", "ValueError: wrong")


def test_contact_lost_to_a_rank_that_was_stopped_in_preparation_is_no_fault(tmp_path: Path) -> None:
    write_beat(tmp_path, 1, 1, state="stopped", phase="preparation")
    watchdog = Watchdog(WatchdogConfig(), tmp_path, rank=0, size=2)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(StoppedInPreparationError, match="another rank"), watchdog:
            raise RuntimeError("Connection closed by peer [127.0.0.1]:1")
    finally:
        signal.signal(signal.SIGTERM, before)
    beat = json.loads((tmp_path / "heartbeat/rank_00000.json").read_text())
    assert beat["state"] == "stopped"


def test_a_torn_trace_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("save 4  \n2 0 all_reduce 5   \n1 0 barrier 0   \n3 0 all_re\n")
    assert read_trace(path) == Trace("save", 4, [Call(1, "0", "barrier", 0), Call(2, "0", "all_reduce", 5)])
    assert read_trace(tmp_path / "none") is None
