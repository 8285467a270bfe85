"""Chains in a sweep: entries that come after others, what is wrong with them, and that they resume anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.__main__ import main
from launch.sweep import chain
from launch.sweep import sweep as sweeping
from launch.sweep.members import LabelsMember, RunMember, members, representatives, runs_of
from launch.sweep.sweep_file import read_sweep
from tests.faults.processes import HANG_SECONDS
from tests.launch.sweep.test_sweep import ROOT, WATCH, acting
from tests.tiny import tiny_config, tiny_file
from tests.tiny_boxes import tiny_boxes_file

__all__ = ["acting"]

FIRST: dict[str, Any] = {"name": "first", "steps": 4}
SECOND: dict[str, Any] = {"name": "second", "after": "first", "checkpoint.start_from": "{after}@4", "optim.lr": 1e-3}
LABELS: dict[str, Any] = {"name": "labels", "after": "first", "make": "pseudo_labels", "attention_threshold": 0.9}
THIRD: dict[str, Any] = {"name": "third", "after": "labels", "task.data.sources": ["{after}/*.png"]}


def chain_file(folder: Path, *entries: dict[str, Any], **settings: Any) -> Path:
    described = {
        "name": "sw",
        "config": str(tiny_boxes_file(folder)),
        "runs": list(entries),
        "parallel": 2,
        "report": False,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (described | settings).items() if value is not None}))
    return path


def started(folder: Path) -> list[str]:
    """Return the outputs of the members that were started, one for each start, in order of their names."""
    marks = sorted((folder / "runs/sw").rglob("started"))
    return [str(path.parent.relative_to(folder / "runs/sw")) for path in marks for _ in path.read_text()]


# ----------------------------------------------------------------------------------------------------------- members


def test_after_stands_for_the_output_of_the_member_before(tmp_path: Path) -> None:
    first, second, labels, third = members(read_sweep(chain_file(tmp_path, FIRST, SECOND, LABELS, THIRD)))
    folder = tmp_path / "runs/sw/first"
    assert isinstance(second, RunMember)
    assert (second.after, second.config.checkpoint.start_from) == (first, f"{folder}@4")
    assert isinstance(labels, LabelsMember)
    assert (labels.after, labels.output) == (first, folder / "labels/step_000004")
    assert labels.arguments == (str(folder), "attention_threshold=0.9")
    assert labels.log == folder / "logs/labels.log"
    assert isinstance(third, RunMember)
    assert third.after == labels
    assert third.config.task.data.sources[0].path == f"{folder}/labels/step_000004/*.png"


def test_members_have_the_order_of_the_file_whatever_comes_first(tmp_path: Path) -> None:
    found = members(read_sweep(chain_file(tmp_path, THIRD, LABELS, FIRST)))
    assert [member.name for member in found] == ["third", "labels", "first"]


def test_positions_follow_their_predecessors() -> None:
    assert chain.in_order([2, 0, None, 4, 3, 4]) == [2, 0, 1]  # 3 and 4 are a cycle, and 5 comes after it


def test_with_a_grid_the_member_before_has_the_same_values(tmp_path: Path) -> None:
    path = chain_file(tmp_path, FIRST, SECOND | {"optim.lr": 1e-2}, LABELS, grid={"seed": [0, 1]})
    path.write_text(path.read_text().replace("  optim.lr: 0.01\n", ""))
    found = members(read_sweep(path))
    assert [member.name for member in found] == [
        f"{name}_seed-{n}" for name in ("first", "second", "labels") for n in (0, 1)
    ]
    assert [member.after.name for member in found if member.after] == ["first_seed-0", "first_seed-1"] * 2
    assert found[-1].output == tmp_path / "runs/sw/first_seed-1/labels/step_000004"


def test_an_entry_may_have_a_configuration_of_its_own(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(tiny_config(tmp_path) | {"steps": 20}))
    entries = ({"name": "a", "seed": 1}, {"name": "b", "config": str(other)}, {"config": str(other), "seed": 2})
    found = members(read_sweep(chain_file(tmp_path, *entries)))
    assert [member.config.steps for member in found if isinstance(member, RunMember)] == [6, 20, 20]
    assert [member.name for member in found] == ["a", "b", "config-other_seed-2"]
    alone = members(read_sweep(chain_file(tmp_path, *entries[1:], config=None)))
    assert [member.folder for member in alone] == [member.folder for member in found[1:]]


def test_entries_may_have_different_tasks_and_each_is_checked(tmp_path: Path) -> None:
    images = {"name": "images", "config": str(ROOT / "configs/texture_removal/quickstart.yaml")}
    found = runs_of(
        members(read_sweep(chain_file(tmp_path, FIRST, images, set={"output_dir": str(tmp_path / "runs")})))
    )
    assert [member.config.task.kind for member in found] == ["box_classification", "texture_removal"]
    assert representatives(found) == found


def test_names_of_entries_without_a_chain_may_still_repeat(tmp_path: Path) -> None:
    found = members(read_sweep(chain_file(tmp_path, {"name": "a", "seed": 1}, {"name": "a", "seed": 2})))
    assert len({member.name for member in found}) == 2


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([FIRST, SECOND | {"after": "frist"}], "runs.1.after: no entry is named frist; did you mean first?"),
        ([{"steps": 4}, SECOND | {"after": "x"}], "runs.1.after: no entry is named x; name one, with name: NAME"),
        ([SECOND | {"after": "second"}], "runs.0.after: second is the entry itself"),
        (
            [SECOND | {"name": "a", "after": "b"}, SECOND | {"name": "b", "after": "a"}],
            "runs.0.after: the entries wait for each other (a -> b -> a); remove one after",
        ),
        ([FIRST, FIRST | {"steps": 5}, SECOND], "runs: 2 entries are named first; chains need a different name"),
        ([FIRST, {"name": "b", "after": "first"}], "runs.1.after: no value uses the output of first; write {after}"),
        ([{"name": "b", "task.data.sources": [["{after}"]]}], "runs.0.task.data.sources: {after} is the output of"),
        ([FIRST, LABELS | {"after": None}], "runs.1.make: pseudo_labels needs a finished run; add after: NAME"),
        ([FIRST, LABELS | {"make": "labels"}], "runs.1.make: 'labels' is not known; write pseudo_labels"),
        ([FIRST, LABELS, LABELS | {"name": "b", "after": "labels"}], "runs.2.after: labels is not a run"),
        ([FIRST, LABELS, LABELS | {"name": "b"}], "runs.2.make: runs.1 makes the labels of first too, in the same"),
        ([FIRST, LABELS | {"config": "a.yaml"}], "runs.1.config: has no effect with make: pseudo_labels"),
        ([FIRST, LABELS | {"name": "sweep"}], "runs.1.name: 'sweep' cannot name a log file"),
        ([FIRST, LABELS | {"name": "../up"}], "runs.1.name: '../up' cannot name a log file"),
        ([FIRST, SECOND | {"checkpoint.start_from": "{after}@5"}], "first keeps no checkpoint of step 5 (steps 4, "),
        (
            [FIRST, SECOND | {"checkpoint.start_from": "{after}@3"}],
            "(steps 4, checkpoint.every 2); write {after}@4",
        ),
        ([FIRST, SECOND | {"checkpoint.start_from": "{after}"}], "{after} is a run folder; add the step, {after}@4"),
        ([FIRST, SECOND | {"steps": 4}], "steps: 4 leave nothing to train after step 4 of first; raise steps"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_chain_is_exit_2(
    entries: list[dict[str, Any]], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(chain_file(tmp_path, *entries))]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"config": None}, "config: missing; write e.g. config: configs/language_model/quickstart.yaml, or give every"),
        ({"set": {"seed": "{after}"}}, "set.seed: {after} is known only to an entry of runs with after"),
        ({"grid": {"seed": ["{after}"]}}, "grid.seed: {after} is known only to an entry of runs with after"),
        ({"set": {"attention_threshold": 1}}, "attention_threshold: unknown key"),
    ],
    ids=str,
)
def test_what_is_wrong_beside_a_chain_is_exit_2(
    settings: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(chain_file(tmp_path, FIRST, LABELS, **settings))]) == 2
    assert said in capsys.readouterr().err


def test_all_faults_are_reported_at_once_also_those_after_a_member_with_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"optim.lr": -1.0}
    assert main(["sweep", str(chain_file(tmp_path, FIRST | bad, SECOND | {"steps": 0}, LABELS, THIRD | bad))]) == 2
    printed = capsys.readouterr().err
    assert "optim.lr: -1.0 is too small" in printed
    assert "(in first and 1 more)" in printed
    assert "steps: 0 is too small" in printed
    assert "missing" not in printed  # the path in place of an unknown one


def test_a_configuration_that_no_run_uses_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(tiny_file(tmp_path))
    assert main(["sweep", str(chain_file(tmp_path, FIRST | {"config": other}, LABELS))]) == 2
    assert "config: has no effect, as every entry of runs has its own; remove it" in capsys.readouterr().err


def test_configurations_with_other_folders_for_runs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(tiny_config(tmp_path) | {"output_dir": "elsewhere"}))
    entries = (FIRST, {"name": "b", "config": str(other)})
    assert main(["sweep", str(chain_file(tmp_path, *entries))]) == 2
    assert f"output_dir: {tmp_path}/runs in {tmp_path}/tiny.yaml, elsewhere in {other};" in capsys.readouterr().err
    assert len(members(read_sweep(chain_file(tmp_path, *entries, set={"output_dir": "there"})))) == 2


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"atention_threshold": 0.9}, "did you mean attention_threshold?"),
        ({"crf.steps": 0}, "crf.steps: 0 is too small"),
    ],
)
def test_settings_of_labels_are_checked_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], part: str
) -> None:
    assert main(["sweep", str(chain_file(tmp_path, FIRST, LABELS | changes))]) == 2
    assert part in capsys.readouterr().err
    text = str(tiny_file(tmp_path / "text"))
    assert main(["sweep", str(chain_file(tmp_path, FIRST | {"config": text}, LABELS, config=None))]) == 2
    assert "first is a run of language_model; labels need one of box_classification" in capsys.readouterr().err


def test_labels_made_with_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = chain_file(tmp_path, FIRST, LABELS)
    labels = members(read_sweep(path))[1]
    labels.output.mkdir(parents=True)
    (labels.output / "labels.json").write_text(json.dumps({"settings": {"attention_threshold": 0.9, "other": 1}}))
    assert members(read_sweep(path))[1].is_finished
    assert main(["sweep", str(chain_file(tmp_path, FIRST, LABELS | {"attention_threshold": 0.5}))]) == 2
    assert "holds labels made with other settings (attention_threshold: 0.9 -> 0.5)" in capsys.readouterr().err


def test_a_cluster_is_refused_with_what_to_do_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = chain_file(tmp_path, FIRST, SECOND)
    assert main(["sweep", str(path), "--cluster", "configs/cluster/example.yaml"]) == 2
    printed = capsys.readouterr().err
    assert "--cluster: second comes after first" in printed
    assert "`python -m launch slurm`" in printed


# ------------------------------------------------------------------------------------------------------------ running


def test_members_start_after_the_one_before_and_finished_ones_do_not_start_again(
    acting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(chain_file(tmp_path, THIRD, LABELS, SECOND, FIRST))
    assert main(["sweep", path]) == 0
    lines = [line[6:].split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(lines) == 8
    for before, after in (("first", "labels"), ("labels", "third"), ("first", "second")):
        assert lines.index(["done", before]) < lines.index(["start", after])
    assert main(["sweep", path]) == 0
    assert "4 already finished" in capsys.readouterr().out
    assert started(tmp_path) == ["first/labels/step_000004", "first", "second", "third"]


def test_what_comes_after_a_failure_waits_and_the_same_command_goes_on(
    acting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(chain_file(tmp_path, FIRST, LABELS, THIRD, SECOND))
    acting.write_text(json.dumps({"labels": "fail"}))
    assert main(["sweep", path]) == 1
    printed = capsys.readouterr().out
    assert "[3/4] FAILED" in printed or "[2/4] FAILED" in printed
    assert f"labels  exit code 1  {tmp_path}/runs/sw/first/logs/labels.log\n    the reason why" in printed
    assert "not started: 1\n  third  waits for labels\n" in printed
    acting.write_text("{}")
    assert main(["sweep", path]) == 0
    assert started(tmp_path).count("third") == started(tmp_path).count("first") == 1


def test_what_comes_after_a_member_that_was_stopped_waits(
    acting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(chain_file(tmp_path, FIRST, LABELS, THIRD))
    acting.write_text(json.dumps({"labels": "wait"}))
    ready = tmp_path / "runs/sw/first/labels/step_000004/ready"
    number = str(int(signal.SIGTERM))
    watcher = subprocess.Popen([sys.executable, "-c", WATCH, str(os.getpid()), number, str(ready)])
    try:
        assert main(["sweep", path]) == 75
    finally:
        watcher.kill()
        watcher.wait()
    printed = capsys.readouterr().out
    assert "stopped: 1 of 3 members are finished; run the same command to resume" in printed
    assert "not started: 1\n  third  waits for labels\n" in printed
    acting.write_text("{}")
    assert main(["sweep", path]) == 0
    assert started(tmp_path) == ["first/labels/step_000004", "first/labels/step_000004", "first", "third"]


def test_labels_outlive_their_run(acting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint of a run is damaged after its labels were made, and the run fails: there is nothing to report."""
    path = chain_file(tmp_path, FIRST, LABELS, report=True)
    labels = members(read_sweep(path))[1]
    labels.output.mkdir(parents=True)
    (labels.output / "labels.json").write_text("{}")
    acting.write_text(json.dumps({"first": "fail"}))
    assert main(["sweep", str(path)]) == 1
    assert "1 already finished" in capsys.readouterr().out
    assert not (tmp_path / "runs/sw/report").exists()


def test_only_runs_whose_member_before_is_finished_are_checked_up_front(
    acting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(sweeping, "check", lambda words: checked.append(next(w for w in words if "name=" in w)))
    path = str(chain_file(tmp_path, FIRST, LABELS, THIRD, SECOND))
    acting.write_text(json.dumps({"labels": "fail", "second": "fail"}))
    assert main(["sweep", path]) == 1
    assert checked == ["name=first"]
    assert main(["sweep", path]) == 1
    assert checked == ["name=first", "name=second"]


def test_a_dry_run_lists_chains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(chain_file(tmp_path, FIRST, LABELS, SECOND)), "--dry-run"]) == 0
    printed, folder = capsys.readouterr().out, tmp_path / "runs/sw/first"
    assert "\nlabels  (new, after first)\n" in printed
    assert f"$ python -m train.pseudo_labels {folder} attention_threshold=0.9\n" in printed
    assert f"'checkpoint.start_from=\"{folder}@4\"'" in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_chain_of_two_runs_that_is_interrupted_ends_with_the_report(tmp_path: Path) -> None:
    """Real runs: interrupted while the first trains, started again; a minute."""
    second = {"name": "second", "after": "first", "checkpoint.start_from": "{after}@30", "steps": 32, "optim.lr": 1e-3}
    path = chain_file(tmp_path, second, {"name": "first", "steps": 30}, report=True)
    command = [sys.executable, "-m", "launch", "sweep", str(path)]
    interrupted = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs/sw/first/metrics.jsonl"
    deadline = time.monotonic() + HANG_SECONDS
    while not metrics.exists() and interrupted.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    interrupted.send_signal(signal.SIGTERM)
    printed, _ = interrupted.communicate(timeout=HANG_SECONDS)
    assert interrupted.returncode == 75, printed
    assert "not started: 1\n  second  waits for first\n" in printed
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert again.returncode == 0, again.stdout + again.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs/sw/second/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [31, 32]
    assert (tmp_path / "runs/sw/report/index.html").is_file()
