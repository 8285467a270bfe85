"""A signal to any one rank: all save at the next step boundary and leave with 75; the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.processes import (
    HANG_SECONDS,
    descendants,
    losses,
    rank_processes,
    rows,
    training,
    validations,
    wait_until,
)
from tests.tiny import tiny_file
from train.config.facts.run_layout import is_finished

ROOT = Path(__file__).parents[2]
SLOW_STEPS = ["steps=200", "checkpoint.every=1000", "evaluate_every=100", "log_every=1"]


OTHERS = [
    pytest.param(signal.SIGUSR1, marks=pytest.mark.nightly),
    pytest.param(signal.SIGINT, marks=pytest.mark.nightly),
]


@pytest.mark.parametrize("number", [signal.SIGTERM, *OTHERS])
def test_a_signal_to_the_launcher_saves_and_the_same_command_finishes(tmp_path: Path, number: signal.Signals) -> None:
    path, run = tiny_file(tmp_path), tmp_path / "runs/tiny"
    settings = ["steps=60", "checkpoint.every=1000", "evaluate_every=30", "log_every=1"]
    with training(path, settings) as process:
        wait_until(lambda: len(losses(run)) >= 5)
        process.send_signal(number)
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 75, said
    stopped = json.loads((run / "stopped.json").read_text())
    step = stopped["step"]
    assert stopped == {"exit_code": 75, "step": step, "signal": number.name, "time": stopped["time"]}
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == [f"step_{step:06d}"]
    assert max(losses(run)) == step < 60
    assert [event["signal"] for event in rows(run, "events") if event["event"] == "signal"] == [number.name]
    assert f"stopped after step {step}" in said
    with training(path, settings) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    assert not (run / "stopped.json").exists()
    assert sorted(losses(run)) == list(range(1, 61))
    assert sorted(validations(run)) == [30, 60]
    if number == signal.SIGTERM:  # the quick case ends here
        return
    with training(path, [*settings, "name=unbroken"]) as process:
        process.communicate(timeout=HANG_SECONDS)
    assert losses(run) == losses(tmp_path / "runs/unbroken")
    assert validations(run) == validations(tmp_path / "runs/unbroken")


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.nightly), pytest.param(3, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path, stage: int) -> None:
    path, run = tiny_file(tmp_path), tmp_path / "runs/tiny"
    settings = [*SLOW_STEPS, f"engine.zero_stage={stage}"]
    with training(path, settings, ranks=2) as process:
        wait_until(lambda: len(losses(run)) >= 5)
        os.kill(rank_processes(process.pid)[1], signal.SIGUSR1)
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 75, said
    stopped = json.loads((run / "stopped.json").read_text())
    assert max(losses(run)) == stopped["step"]
    assert (run / f"checkpoints/step_{stopped['step']:06d}/manifest.json").exists()


@pytest.mark.slow
def test_an_evaluation_is_broken_off_and_made_up_for(tmp_path: Path) -> None:
    """The last one: the run is not finished before it is evaluated, and never evaluated twice."""
    path, run = tiny_file(tmp_path), tmp_path / "runs/tiny"
    settings = ["steps=4", "evaluate_every=4", "checkpoint.every=1000", "task.data.validation_fraction=0.5"]
    settings += ["micro_batch_size=1"]  # some hundred validation passes
    with training(path, settings) as process:
        wait_until(lambda: len(losses(run)) >= 4)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 75, said
    assert validations(run) == {}
    assert (run / "checkpoints/step_000004").exists()
    assert not is_finished(run, 4)
    with training(path, settings) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    assert list(validations(run)) == [4]
    assert is_finished(run, 4)


def test_a_signal_in_preparation_leaves_at_once_with_nothing_lost(tmp_path: Path) -> None:
    path, run = tiny_file(tmp_path), tmp_path / "runs/tiny"
    with training(path, SLOW_STEPS) as process:
        wait_until(lambda: b"train" in b" ".join(command_lines(process.pid)))
        wait_until(lambda: any(handles(pid, signal.SIGTERM) for pid in descendants(process.pid)))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 75, said
    assert "nothing is lost" in said
    assert not rows(run)


def command_lines(pid: int) -> list[bytes]:
    found = []
    for child in descendants(pid):
        try:
            found.append(Path(f"/proc/{child}/cmdline").read_bytes())
        except OSError:
            continue
    return found


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_a_signal_while_torch_is_imported_leaves_with_75(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train", str(tiny_file(tmp_path))]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text())
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 75, said
    assert "nothing is lost" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_second_signal_leaves_without_hurting_the_last_checkpoint(tmp_path: Path) -> None:
    path, run = tiny_file(tmp_path), tmp_path / "runs/tiny"
    settings = ["steps=4000", "checkpoint.every=2", "checkpoint.keep=2", "evaluate_every=4000"]
    with training(path, settings) as process:
        wait_until(lambda: len(losses(run)) >= 6)
        process.send_signal(signal.SIGSTOP)  # so that both signals wait together
        pid = next(iter(descendants(process.pid)))
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGCONT)
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1, said
    assert "the last complete one is intact" in said
    assert not (run / "stopped.json").exists()
    with training(path, [*settings[1:], f"steps={settings[0][6:]}"]) as process:
        wait_until(lambda: any(event["event"] == "resume" for event in rows(run, "events")))
    assert next(event["step"] for event in rows(run, "events") if event["event"] == "resume") >= 4


def test_a_deadline_forces_the_exit(tmp_path: Path) -> None:
    from train.ranks.stopping import StopSignal

    script = (
        "import logging, os, signal, time; logging.basicConfig();"
        "from train.ranks.stopping import StopSignal; stop = StopSignal(deadline=0.3)\n"
        "with stop.listening():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "no checkpoint within 0.3 s of SIGTERM" in done.stderr
    assert StopSignal().name is None


def test_a_signal_that_arrives_by_two_routes_is_one_request() -> None:
    """SLURM may signal every process of a job, and the launcher forwards its own; a later one is a second request."""
    script = (
        "import os, signal, time\nfrom train.ranks import stopping\nstop = stopping.StopSignal()\n"
        "stopping._REPEAT_SECONDS = 3.0\n"
        "with stop.listening():\n"
        "    for _ in range(3):\n        os.kill(os.getpid(), signal.SIGUSR1); time.sleep(0.1)\n"
        "    print('alive', flush=True); time.sleep(3.0)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1); time.sleep(600)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "alive\n"), done.stderr


def test_after_the_save_signals_change_nothing() -> None:
    script = (
        "import os, signal, time\nfrom train.ranks.stopping import StopSignal\nstop = StopSignal(deadline=2.0)\n"
        "with stop.listening():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while stop.name is None:\n        time.sleep(0.01)\n"  # another thread receives it
        "    stop.mark_saved()\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(2.5)\n"
        "raise SystemExit(75)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr


def test_a_worker_that_ends_is_no_signal_to_the_run() -> None:
    script = (
        "import os, signal, time\nfrom train.ranks.stopping import StopSignal\nstop = StopSignal()\n"
        "with stop.listening():\n"
        "    child = os.fork()\n"
        "    if child == 0:\n        time.sleep(20); os._exit(0)\n"
        "    time.sleep(0.1); os.kill(child, signal.SIGTERM); code = os.waitpid(child, 0)[1]; time.sleep(0.2)\n"
        "    assert code == signal.SIGTERM and stop.name is None, (code, stop.name)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("fault", "rank"),
    [
        pytest.param("late_at_the_group", 0, marks=pytest.mark.slow),
        pytest.param("late_at_the_group", 1, marks=pytest.mark.nightly),
        pytest.param("late_with_the_model", 0, marks=pytest.mark.nightly),
        pytest.param("late_with_the_model", 1, marks=pytest.mark.nightly),
    ],
)
def test_a_signal_to_one_rank_in_preparation_ends_all_with_75(tmp_path: Path, fault: str, rank: int) -> None:
    """While rank 0 waits for rank 1 in a collective, where Python runs no handlers: 5 s later it leaves anyway."""
    path = tiny_file(tmp_path)
    with training(path, SLOW_STEPS, ranks=2, fault=fault) as process:
        wait_until(lambda: (tmp_path / "late").exists())
        os.kill(rank_processes(process.pid)[rank], signal.SIGTERM)
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 75, said
    assert "[rank 0] received SIGTERM" in said
    assert not rows(tmp_path / "runs/tiny")
