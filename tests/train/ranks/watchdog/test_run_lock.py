"""One training run per run folder: a second start is refused, a dead holder's lock is taken over, and that is said."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_file
from train.__main__ import main
from train.config.errors import ConfigError
from train.ranks.watchdog import heartbeat, run_lock
from train.ranks.watchdog.heartbeat import Heartbeat
from train.ranks.watchdog.lock_holder import Holder, this_process
from train.ranks.watchdog.run_lock import RunInUseError, RunLock

ROOT = Path(__file__).parents[4]
HOLD = (
    "import sys, time; from pathlib import Path; from train.ranks.watchdog.run_lock import RunLock\n"
    "with RunLock(Path(sys.argv[1])) as lock:\n    lock.take(); print('taken', flush=True); time.sleep(600)"
)
ELSEWHERE = Holder(
    host="elsewhere",
    pid=1,
    started=0,
    boot="other",
    namespace="1",
    job="",
    world="w",
    since="2026-01-01T00:00:00+00:00",
)


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock in another process."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count a holder as gone after a second without a sign of life, not two minutes."""
    monkeypatch.setattr(run_lock, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(run_lock, "_QUIET_SECONDS", 0.5)


def locked_by(folder: Path, who: Holder, *, age: float = 600.0) -> Path:
    """Write the lock of a holder that created it so many seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").write_text(json.dumps(asdict(who)))
    _made(folder / "lock", age)
    return folder


def beat(folder: Path, number: int, *, host: str = "elsewhere", rank: int = 0, age: float = 0.0) -> None:
    path = heartbeat.path_of(folder, rank)
    path.parent.mkdir(exist_ok=True)
    values: dict[str, Any] = {"phase": "step", "step": 1, "seconds": 0.0, "deadline": None, "collective": ""}
    heartbeat.write(path, Heartbeat(rank, host, 1, number, heartbeat.now(), "running", **values))
    _made(path, age)


def _made(path: Path, age: float) -> None:
    os.utime(path, (time.time() - age, time.time() - age))


def take(folder: Path, *, environment: dict[str, str] | None = None, running: bool | None = None) -> RunLock:
    lock = RunLock(folder, environment=environment or {}, query_job=lambda _: running)
    lock.take()
    return lock


def test_a_second_start_is_refused_and_told_who_trains(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        before = (tmp_path / "run/lock").read_bytes()
        with pytest.raises(RunInUseError, match=rf"process {process.pid} on .*kill {process.pid} saves a checkpoint"):
            take(tmp_path / "run")
        assert (tmp_path / "run/lock").read_bytes() == before


def test_train_refuses_with_2_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = tiny_file(tmp_path), tmp_path / "runs/tiny"
    with holder(run) as process:
        assert main([str(path)]) == 2
        assert f"process {process.pid} on" in capsys.readouterr().err
        assert [item.name for item in run.iterdir()] == ["lock"]


def test_a_killed_holder_is_taken_over_at_once_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with holder(tmp_path / "run") as process:
        process.kill()
        process.wait()
        began = time.monotonic()
        lock = take(tmp_path / "run")
    assert time.monotonic() - began < 5
    assert f"took over the lock of process {process.pid} on" in caplog.text
    with lock:
        pass
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_another_process_with_the_pid_of_the_holder_is_not_the_holder(tmp_path: Path) -> None:
    me = json.loads((locked_by(tmp_path, this_process({})) / "lock").read_text())
    locked_by(tmp_path, Holder(**{**me, "started": me["started"] - 1}))
    take(tmp_path)


@pytest.mark.usefixtures("quick")
def test_a_restart_of_the_machine_frees_its_locks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    me = this_process({})
    take(locked_by(tmp_path, replace(me, boot="earlier")))
    assert "ended when the machine was restarted" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_machine_of_the_same_name_is_another_one(tmp_path: Path) -> None:
    locked_by(tmp_path, replace(this_process({}), boot="another machine"))
    beat(tmp_path, 0)
    with beating(tmp_path), pytest.raises(RunInUseError):
        take(tmp_path)


@pytest.mark.usefixtures("quick")
def test_a_container_on_the_same_host_cannot_be_asked(tmp_path: Path) -> None:
    """Its process ids are its own: what exists under a number here is another process."""
    me = this_process({})
    locked_by(tmp_path, replace(me, namespace="1", pid=2**22 - 1))
    with beating(tmp_path, host=me.host), pytest.raises(RunInUseError):
        take(tmp_path)


@contextmanager
def beating(folder: Path, *, host: str = "elsewhere") -> Iterator[None]:
    """Keep writing heartbeats of rank 0."""
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.wait(0.1):
            number += 1
            beat(folder, number, host=host)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_is_believed_as_long_as_its_heartbeat_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locked_by(tmp_path, ELSEWHERE, age=0)
    with beating(tmp_path), pytest.raises(RunInUseError, match="process 1 on elsewhere"):
        take(tmp_path)
    began = time.monotonic()
    take(tmp_path)
    assert time.monotonic() - began > 0.5
    assert "no sign of life for 1 s" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_heartbeat_just_written_elsewhere_is_waited_for(tmp_path: Path) -> None:
    beat(locked_by(tmp_path, ELSEWHERE), 1)
    began = time.monotonic()
    take(tmp_path)
    assert time.monotonic() - began > 0.4


def test_slurm_knows_whether_the_job_of_the_holder_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = locked_by(tmp_path, replace(ELSEWHERE, job="17"))
    with pytest.raises(RunInUseError, match=r"SLURM job 17.*scancel 17"):
        take(folder, running=True)
    with patience(0.2):
        take(folder, running=False)
    assert "belonged to a job that is over" in caplog.text


def test_a_requeued_job_takes_over_from_its_earlier_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its node may be lost and silent; that the job runs, as SLURM says, means this start."""
    folder = locked_by(tmp_path, replace(ELSEWHERE, job="17"))
    with patience(0.2):
        take(folder, environment={"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}, running=True)
    assert "belonged to an earlier start of this job" in caplog.text


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_lock, "_QUIET_SECONDS", seconds)
        yield


def test_ranks_that_outlive_rank_0_for_a_moment_are_waited_for(tmp_path: Path) -> None:
    """They still write heartbeats and files; their process ends seconds later."""
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        beat(tmp_path, 0)
        with beating(tmp_path), patience(0.5), pytest.raises(RunInUseError):  # it does not end
            take(tmp_path)
        with patience(0.5):
            take(tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}', json.dumps({**asdict(ELSEWHERE), "boot": 3})])
def test_a_lock_without_content_is_that_of_a_start_killed_while_it_wrote(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    began = time.monotonic()
    take(tmp_path)
    assert time.monotonic() - began > 0.3
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def _rank(rank: int, port: str = "1") -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": port}


def test_other_ranks_wait_until_rank_0_of_their_own_launch_has_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "START_SECONDS", 0.3)
    with pytest.raises(ConfigError, match="rank 1: rank 0 has not started"):
        take(tmp_path, environment=_rank(1))
    first = take(tmp_path, environment=_rank(0))
    with pytest.raises(RunInUseError):
        take(tmp_path, environment=_rank(1, port="2"))
    second = take(tmp_path, environment=_rank(1))
    with second:
        pass
    assert (tmp_path / "lock").exists()  # it is rank 0 that lets go of it
    with first:
        pass
    assert not (tmp_path / "lock").exists()


def test_a_refused_run_leaves_no_folder_behind(tmp_path: Path) -> None:
    lock = take(tmp_path / "runs/x")
    with lock:
        beat(tmp_path / "runs/x", 1)
    assert not list(tmp_path.iterdir())


def test_the_lock_of_another_is_not_released(tmp_path: Path) -> None:
    lock = take(tmp_path)
    with lock:
        locked_by(tmp_path, ELSEWHERE)
    assert (tmp_path / "lock").exists()


def _race(folder: Path, barrier: Any, results: Any) -> None:
    logging.disable()
    barrier.wait()
    try:
        take(folder)
        results.put(True)
    except RunInUseError:
        results.put(False)
    barrier.wait()  # the one that has it is alive until all have tried


@pytest.mark.usefixtures("quick")
def test_a_start_killed_while_it_took_over_blocks_no_other(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
    (tmp_path / "lock.takeover").touch()
    take(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("is_stale", [True, False])
def test_of_several_starts_at_once_one_gets_the_lock(tmp_path: Path, is_stale: bool) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
    stale = (tmp_path / "lock").read_text()
    context = multiprocessing.get_context("fork")
    for _ in range(10):
        (tmp_path / "lock").unlink(missing_ok=True)
        if is_stale:
            (tmp_path / "lock").write_text(stale)
        barrier, results = context.Barrier(6), context.Queue()
        starts = [context.Process(target=_race, args=(tmp_path, barrier, results)) for _ in range(6)]
        for start in starts:
            start.start()
        outcomes = [results.get(timeout=60) for _ in starts]
        for start in starts:
            start.join()
        assert sorted(outcomes) == [False] * 5 + [True]
        assert not list(tmp_path.glob("lock.*"))
