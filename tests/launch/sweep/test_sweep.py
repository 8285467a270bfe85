"""`python -m launch sweep`: what its members are, what it refuses, and that it goes on after any stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.__main__ import main
from launch.sweep import pool
from launch.sweep import sweep as sweeping
from launch.sweep.members import Member, RunMember, members, runs_of
from launch.sweep.slots import shares
from launch.sweep.sweep_file import read_sweep
from tests.checkpoints import write_checkpoint
from tests.faults.processes import HANG_SECONDS
from tests.tiny import tiny_file
from train.config.errors import ConfigError
from train.config.load import load
from train.observe.run_facts import write_config

ROOT = Path(__file__).parents[3]
GRID = {"task.model.norm_placement": ["pre", "peri"], "optim.lr": [1e-3, 3e-2], "seed, task.data.seed": [0, 1]}

# A member that needs no torch: its arguments are name, output, last step (0 of labels) and a file of what members do.
ACT = """
import json, os, pathlib, signal, sys, time
from tests.checkpoints import write_checkpoint
name, folder, steps = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
deed = json.loads(pathlib.Path(sys.argv[4]).read_text()).get(name, "finish")
folder.mkdir(parents=True, exist_ok=True)
print("cores", sorted(os.sched_getaffinity(0)), flush=True)
(folder / "started").open("a").write("x")
if deed == "wait":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "ready").touch()
    time.sleep(60)
if deed == "fail":
    print("the reason why")
    sys.exit(1)
if steps:
    write_checkpoint(folder, steps)
else:
    (folder / "labels.json").write_text('{"settings": {"attention_threshold": 0.9}}')
"""


def sweep_file(folder: Path, **settings: Any) -> Path:
    described = {"name": "sw", "config": str(tiny_file(folder)), "parallel": 2, "grid": GRID, "report": False}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(described | settings, sort_keys=False))
    return path


def loaded_runs(path: Path, overrides: Sequence[str] = ()) -> list[RunMember]:
    return runs_of(members(read_sweep(path, overrides)))


def names(path: Path) -> list[str]:
    return [m.name for m in members(read_sweep(path))]


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Replace the members by actors; returns the file that tells what each of them does."""
    script = tmp_path / "script.json"
    script.write_text("{}")

    def command(member: Member, ranks: int) -> list[str]:
        assert ranks == 1
        steps = member.config.steps if isinstance(member, RunMember) else 0
        return [sys.executable, "-c", ACT, member.name, str(member.output), str(steps), str(script)]

    monkeypatch.setattr(pool, "command", command)
    monkeypatch.setattr(sweeping, "check", lambda _: None)
    return script


# ----------------------------------------------------------------------------------------------------------- members


def test_a_grid_is_every_combination_and_tied_keys_go_together(tmp_path: Path) -> None:
    found = loaded_runs(sweep_file(tmp_path))
    assert len(found) == 8
    assert found[0].name == "placement-pre_lr-1e-3_seed-0"
    assert found[-1].name == "placement-peri_lr-3e-2_seed-1"
    assert {(m.config.seed, m.config.task.data.seed) for m in found} == {(0, 0), (1, 1)}
    assert found[0].folder == tmp_path / "runs/sw/placement-pre_lr-1e-3_seed-0"


def test_a_list_beside_a_grid_is_combined_with_it(tmp_path: Path) -> None:
    runs = [{"name": "wide", "task.model.hidden_size": 64}, {"task.model.num_hidden_layers": 3}]
    found = names(sweep_file(tmp_path, runs=runs, grid={"optim.lr": [1e-3, 0.5]}))
    assert found == ["wide_lr-1e-3", "wide_lr-0.5", "num_hidden_layers-3_lr-1e-3", "num_hidden_layers-3_lr-0.5"]


def test_keys_that_end_alike_are_told_apart_by_their_sections(tmp_path: Path) -> None:
    found = names(sweep_file(tmp_path, grid={"seed": [0], "task.data.seed": [1]}))
    assert found == ["seed-0_data.seed-1"]


def test_values_that_make_no_folder_name_do_so_all_the_same(tmp_path: Path) -> None:
    placements = [["pre", "peri"], ["peri", "post"]]
    grid = {
        "task.model.norm_placement": placements,
        "optim.gradient_clipping": [None, 1.5],
        "optim.betas": [[0.9, 0.95]],
    }
    found = names(sweep_file(tmp_path, grid=grid))
    assert found[0] == "placement-pre-peri_gradient_clipping-null_betas-0.9-0.95"
    assert len(set(found)) == 4


def test_a_member_is_the_run_that_its_command_starts(tmp_path: Path) -> None:
    grid = {"optim.betas": [[0.9, 0.99]], "optim.gradient_clipping": [None], "task.model.norm_placement": ["post"]}
    extra = {"optim.lr": 0.0001, "engine.deterministic": False, "task.data.tokenizer": "byte-bpe"}
    member = loaded_runs(sweep_file(tmp_path, grid=grid, set=extra), ["steps=5"])[0]
    assert member.config == load(member.arguments[0], member.arguments[1:])
    assert member.config.optim.betas == (0.9, 0.99)
    assert member.config.optim.gradient_clipping is None
    assert (member.config.optim.lr, member.config.steps) == (0.0001, 5)


def test_the_experiments_sweep_is_36_runs() -> None:
    found = loaded_runs(ROOT / "configs/sweeps/placements.yaml")
    assert len({member.name for member in found}) == 36
    assert {member.config.optim.lr for member in found} == {1e-3, 3e-3, 1e-2, 3e-2}
    assert all(member.config.seed == member.config.task.data.seed for member in found)


def test_finished_means_what_training_means_by_it(tmp_path: Path) -> None:
    member = loaded_runs(sweep_file(tmp_path))[0]
    for step, saved, finished in (
        (7, {}, False),
        (8, {"evaluated": 4}, False),
        (8, {}, True),
        (8, {"evaluated": 8}, True),
    ):
        write_checkpoint(member.folder, step, **saved)
        assert member.is_finished == finished


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"grid": {}}, "grid: missing, and there are no runs either"),
        ({"grid": {"optim.lr": 1e-3}}, "grid.optim.lr: 0.001 is not a list of values; write [0.001, ...]"),
        ({"grid": {"optim.lr": []}}, "grid.optim.lr: [] is not a list"),
        ({"grid": {"name": ["a"]}}, "name: the sweep chooses its members' folders"),
        ({"grid": {"seed, task.data.seed": [0], "seed": [1]}}, "seed: is varied twice"),
        ({"set": {"seed": 1}}, "seed: is both in set and varied"),
        ({"set": {"name": "x"}}, "set.name: the sweep names its members itself"),
        ({"name": "a/b"}, "name: 'a/b' is not a valid folder name"),
        ({"parallel": 0}, "parallel: 0 is too small; write 1 to 10_000"),
        ({"parallel": 10**30}, "is too large; write 1 to 10_000"),
        ({"grid": {"seed": [float("nan")]}}, "grid.seed: [.nan] contains a number that is not finite"),
        ({"set": {"optim.betas": [0.9, float("inf")]}}, "set.optim.betas: [0.9, .inf] contains a number"),
        ({"grid": {1: [0]}}, "keys must be text, and 1 is not"),
        ({"grid": {None: [0]}}, "keys must be text, and null is not"),
        ({"grid": {"optim lr": [1e-3]}}, "grid.optim lr: not the path of a setting"),
        ({"grid": {"seed": list(range(1000)), "task.data.seed": list(range(1000))}}, "1_000_000 members are more"),
        ({"grid": {"seed": [1, 1.0]}}, "members 1 and 2 are the same run (seed=1.0); keep only one"),
        ({"set": {"output_dir": [1]}}, "output_dir: [1] is not text"),
        ({"ranks": 3}, "8 samples cannot be divided evenly among 3 ranks"),
        ({"paralel": 2}, "paralel: unknown key; did you mean parallel?"),
        ({"grid": {"optim.lr": [1e-3, 1e-3]}}, "members 1 and 2 are the same run (optim.lr=0.001); keep only one"),
        ({"grid": {"optim.lrr": [1e-3]}}, "optim.lrr: unknown key; did you mean optim.lr?"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml: no such file"),
    ],
    ids=str,
)
def test_what_is_wrong_is_exit_2(
    settings: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(sweep_file(tmp_path, **settings))]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_all_members_are_checked_before_any_starts_and_each_fault_is_told_once(tmp_path: Path) -> None:
    grid = {"optim.lr": [1e-3, -1.0], "task.model.num_attention_heads": [4, 3], "steps": [8, 0]}
    with pytest.raises(ConfigError) as error:
        members(read_sweep(sweep_file(tmp_path, grid=grid)))
    text = "\n".join(error.value.faults)
    assert text.count("optim.lr: -1.0") == text.count("num_attention_heads: 3") == text.count("steps: 0") == 1
    assert "(in lr--1_num_attention_heads-4_steps-8 and 3 more)" in text


def test_a_folder_that_holds_another_run_is_refused_before_any_starts(tmp_path: Path) -> None:
    path = sweep_file(tmp_path)
    write_config(loaded_runs(path)[3].config)
    with pytest.raises(ConfigError, match=r"belongs to a different run.*steps: 8 -> 9.*another name"):
        members(read_sweep(path, ["steps=9"]))


@pytest.mark.parametrize("arguments", [["--parallel", "0"], ["--cluster", "not-there.yaml"], ["steps"]])
def test_wrong_arguments_are_exit_2(arguments: list[str], tmp_path: Path) -> None:
    assert main(["sweep", str(sweep_file(tmp_path)), *arguments]) == 2


def test_the_data_of_members_are_checked_once_for_each_kind_before_any_starts(
    acting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked: list[Sequence[str]] = []

    def check(arguments: Sequence[str]) -> None:
        checked.append(arguments)
        if any("sequence_length=8" in word for word in arguments):
            raise ConfigError(["task.data.sources: not enough text"])

    monkeypatch.setattr(sweeping, "check", check)
    path = str(sweep_file(tmp_path, grid=GRID | {"task.data.sequence_length": [16, 8]}))
    assert main(["sweep", path]) == 2
    assert len(checked) == 2
    assert "not enough text (in placement-pre_lr-1e-3_seed-0_sequence_length-8)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_members_without_data_are_refused_before_any_starts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(sweep_file(tmp_path, set={"task.data.tokenizer": "./nowhere"}))]) == 2
    assert "task.data.tokenizer" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------------------------ running


def started(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(path.read_text()) for path in sorted((folder / "runs/sw").glob("*/started"))}


def test_members_run_and_finished_ones_are_passed_over(
    acting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(sweep_file(tmp_path))
    assert main(["sweep", path]) == 0
    printed = capsys.readouterr().out
    assert printed.count(" start ") == printed.count(" done ") == 8
    assert "[8/8] done" in printed
    assert main(["sweep", path]) == 0
    assert "8 already finished" in capsys.readouterr().out
    assert set(started(tmp_path).values()) == {1}


def test_failures_are_named_with_log_and_last_line_and_tried_again(
    acting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, bad = str(sweep_file(tmp_path)), "placement-pre_lr-3e-2_seed-1"
    acting.write_text(json.dumps({bad: "fail"}))
    assert main(["sweep", path]) == 1
    told = capsys.readouterr().out.partition("failed: 1")[2]
    log = tmp_path / "runs/sw" / bad / "logs/sweep.log"
    assert f"{bad}  exit code 1  {log}\n    the reason why" in told
    acting.write_text("{}")
    assert main(["sweep", path]) == 0
    assert {name: count for name, count in started(tmp_path).items() if count > 1} == {bad: 2}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_all_members_and_the_same_command_goes_on(
    acting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    path = sweep_file(tmp_path)
    waiting = names(path)[2:4]
    acting.write_text(json.dumps(dict.fromkeys(waiting, "wait")))
    ready = [tmp_path / "runs/sw" / name / "ready" for name in waiting]
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(os.getpid()), str(int(number)), *map(str, ready)], stdin=subprocess.DEVNULL
    )
    try:
        assert main(["sweep", str(path)]) == 75
    finally:
        watcher.kill()
        watcher.wait()
    printed = capsys.readouterr().out
    assert printed.count("stopped placement") == 2
    assert "stopped: 2 of 8 members are finished; run the same command to resume" in printed
    assert len(started(tmp_path)) == 4
    acting.write_text("{}")
    assert main(["sweep", str(path)]) == 0
    assert sorted(started(tmp_path).values()) == [1] * 6 + [2] * 2


WATCH = """
import os, pathlib, sys, time
while not all(pathlib.Path(path).exists() for path in sys.argv[3:]):
    time.sleep(0.05)
os.kill(int(sys.argv[1]), int(sys.argv[2]))
"""


def test_cores_are_shared_out_between_members(acting: Path, tmp_path: Path) -> None:
    assert main(["sweep", str(sweep_file(tmp_path))]) == 0
    logs = [path.read_text().splitlines()[0] for path in (tmp_path / "runs/sw").glob("*/logs/sweep.log")]
    mine = sorted(os.sched_getaffinity(0))
    half = len(mine) // 2
    halves = (mine[:half], mine[half:]) if half else (mine, mine)
    assert set(logs) == {f"cores {cores}" for cores in halves}


def test_gpus_are_shared_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    sweep = read_sweep(sweep_file(tmp_path, ranks=2, parallel=None))
    assert [slot.gpus for slot in shares(sweep, None)] == [("4", "5"), ("6", "7")]
    assert [slot.gpus for slot in shares(sweep, 3)] == [("4", "5"), ("6", "7"), ("4", "5")]


def test_a_dry_run_lists_members_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(sweep_file(tmp_path)), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("$ python -m launch local ") == 8
    assert "optim.lr=0.03 seed=1 task.data.seed=1" in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_ends_with_the_report(tmp_path: Path) -> None:
    """Real runs: interrupted while the first two train, started again, one of two ranks; minutes."""
    grid = {"task.model.norm_placement": ["pre", "peri"], "seed, task.data.seed": [0, 1]}
    path = sweep_file(tmp_path, grid=grid, report=True)
    command = [sys.executable, "-m", "launch", "sweep", str(path), "steps=30"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs/sw/placement-pre_seed-0/metrics.jsonl"
    deadline = time.monotonic() + HANG_SECONDS
    while not metrics.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    printed, _ = first.communicate(timeout=HANG_SECONDS)
    assert first.returncode == 75, printed
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert second.returncode == 0, second.stdout + second.stderr
    assert (tmp_path / "runs/sw/report/index.html").is_file()
    for folder in (tmp_path / "runs/sw").glob("placement-*"):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 31))
