"""Reading run folders, whole and broken, and grouping them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from analysis.figures.training import outcome, skipped_steps, spikes, training_curve
from analysis.groups import axis_of, band, differing_keys, for_depth, group_records, leaves, progress, thin_out
from analysis.runs import InputError, Record, absence, column, norm_role, read_run, read_runs, step_of
from tests.analysis.synthetic import TOKENS_PER_STEP, loss_at, metric_rows, write_depth_run, write_run
from tests.tiny import tiny_file
from train.config.facts.run_layout import step_name
from train.config.load import load, to_yaml
from train.config.resume import settings_by_path


def test_a_whole_run_is_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "peri"))
    assert (run.label, run.placement, run.kind, run.notes) == ("peri", "peri", "language_model", ())
    assert (run.steps_done, run.steps_asked) == (40, 40)
    assert len(run.training) == 40
    assert len(run.validation) == 4
    assert column(run.training, "loss")[24] == loss_at(25)
    assert set(column(run.activations, "site")) >= {"embedding", "attention.stream", "mlp.normed_output"}
    assert math.isnan(column(run.activations, "layer")[0])


def test_a_half_written_last_line_is_skipped_and_noted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "loss": 3.')
    run = read_run(folder)
    assert len(run.metrics) == 44
    assert any("last line of metrics.jsonl is half-written (line 45)" in note for note in run.notes)


def test_a_broken_line_in_the_middle_is_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    lines = (folder / "activations.jsonl").read_text().splitlines()
    lines[2] = "]["
    (folder / "activations.jsonl").write_text("\n".join(lines) + "\n")
    assert any(
        "activations.jsonl: skipped 1 invalid lines" in note and "line 3" in note for note in read_run(folder).notes
    )


def test_of_a_step_that_stands_there_twice_the_later_counts(tmp_path: Path) -> None:
    rows = metric_rows(40)
    run = read_run(write_run(tmp_path / "run", metrics=[{**row, "loss": 50.0} for row in rows if "loss" in row] + rows))
    assert column(run.training, "loss").tolist() == [loss_at(step) for step in range(1, 41)]


def test_layers_are_read_where_they_were_measured(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert read_run(folder).layers.empty
    row = {"step": 40, "layer": 0, "loss": 3.0, "loss_without": 3.25, "angular_distance": 0.1}
    rows = [row, {**row, "layer": 1, "loss_without": None}, {**row, "loss_without": 3.5}]
    (folder / "layers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows) + '{"step": 40, "lay')
    run = read_run(folder)
    assert column(run.layers, "layer").tolist() == [1.0, 0.0]
    assert column(run.layers, "loss_without")[1] == 3.5  # the later row counts
    assert math.isnan(column(run.layers, "loss_without")[0])
    assert any("last line of layers.jsonl is half-written" in note for note in run.notes)


def test_null_is_a_gap(tmp_path: Path) -> None:
    rows = [{**row, "loss": None} if row["step"] == 7 else row for row in metric_rows(40)]
    run = read_run(write_run(tmp_path / "run", metrics=rows))
    losses = column(run.training, "loss")
    assert len(losses) == 40  # a training row whose loss is not finite stays one
    assert np.flatnonzero(np.isnan(losses)).tolist() == [6]


def test_missing_files_are_explained(tmp_path: Path) -> None:
    off = {"activations_every": None, "gradients_every": None}
    run = read_run(write_run(tmp_path / "off", activations=[], gradients=[], probes=off))
    assert absence(run, "activations") == "off: no activations.jsonl: probes.activations_every was null"
    lost = read_run(write_run(tmp_path / "lost", activations=[]))
    assert "no activations.jsonl in" in absence(lost, "activations")
    empty = write_run(tmp_path / "empty", metrics=[], activations=[], gradients=[], events=[])
    (empty / "environment.json").unlink()
    run = read_run(empty)
    assert run.metrics.empty
    assert {"step", "loss", "validation_loss"} <= set(run.metrics.columns)
    assert len(run.notes) == 3


def test_a_run_that_goes_on_is_noted(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", metrics=metric_rows(12), events=[]))
    assert any("step 12 of 40" in note for note in run.notes)
    assert outcome(run) == "unfinished"


@pytest.mark.parametrize(
    ("last", "expected"), [(None, "diverged"), (9.0, "diverged"), (3.0, "finished")], ids=["nan", "above", "below"]
)
def test_divergence_is_a_last_loss_not_finite_or_above_the_first(tmp_path: Path, last: float, expected: str) -> None:
    rows = [{**row, "loss": last} if row["step"] == 40 and "loss" in row else row for row in metric_rows(40)]
    assert outcome(read_run(write_run(tmp_path / "run", metrics=rows))) == expected


def test_a_loss_above_the_first_is_noise_while_a_run_goes_on(tmp_path: Path) -> None:
    rows = [{**row, "loss": 9.0} if row["step"] == 3 else row for row in metric_rows(3)]
    assert outcome(read_run(write_run(tmp_path / "run", metrics=rows, events=[]))) == "unfinished"


def test_what_is_no_run_is_refused_all_at_once(tmp_path: Path) -> None:
    good = write_run(tmp_path / "runs/good")
    (tmp_path / "list").mkdir()
    (tmp_path / "list/config.yaml").write_text("- 1\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.yaml").write_text("a: [\n")
    given = [good, tmp_path / "gone", good / "config.yaml", tmp_path / "runs", tmp_path / "no*", tmp_path / "list"]
    with pytest.raises(InputError) as error:
        read_runs([*map(str, given), str(tmp_path / "bad")])
    message = str(error.value)
    for fragment in ("gone: does not exist", "config.yaml: is a file", "did you mean", "the pattern matches nothing",
                     "holds list", "cannot be read as YAML"):  # fmt: skip
        assert fragment in message
    assert len([line for line in message.splitlines() if str(tmp_path) in line]) >= 6


def test_a_run_given_twice_is_shown_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    records, notes = read_runs([str(folder), f"{folder}{os.sep}.", str(tmp_path / "r*")])
    assert len(records) == 1
    assert len(notes) == 2


def test_equal_names_keep_distinct_labels(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / place / "run", seed=seed) for seed, place in enumerate(("a", "b"))]
    records, _ = read_runs(list(map(str, folders)))
    assert [record.label for record in records] == ["a/run", "b/run"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("post", "post"), (["pre", "pre"], "pre"), (["post", "pre"], "mixed"), (None, "unknown"), ("new", "unknown")],
)
def test_placement(tmp_path: Path, given: object, expected: str) -> None:
    folder = write_run(tmp_path / "run", activations=[], gradients=[], task__model__norm_placement=given)
    assert read_run(folder).placement == expected


def test_norm_roles() -> None:
    assert norm_role("model.layers.3.mlp.output_norm.weight") == "mlp.output_norm"
    assert norm_role("model.layers.3.attention.branch.q_norm.weight") is None
    assert norm_role("model.norm.weight") is None


def test_a_repeated_spike_counts_once(tmp_path: Path) -> None:
    spike = {"event": "spike", "step": 7, "quantity": "loss", "value": 9.0, "median": 4.0, "score": 11.0}
    events = [spike, {"event": "skip", "step": 9}, {"event": "resume", "step": 5}, {**spike, "time": "later"},
              {**spike, "quantity": "grad_norm"}, {"event": "skip", "step": 9}]  # fmt: skip
    run = read_run(write_run(tmp_path / "run", events=events))
    assert [(event["step"], event["quantity"]) for event in spikes(run)] == [(7, "loss"), (7, "grad_norm")]
    assert skipped_steps(run) == [9]


def seeds(tmp_path: Path, **changes) -> list[Record]:
    return [read_run(write_run(tmp_path / f"s{i}", seed=i, offset=0.3 * i, **changes)) for i in range(3)]


def test_seeds_are_one_line_with_a_band(tmp_path: Path) -> None:
    group, *others = group_records(seeds(tmp_path))
    assert not others
    assert group.label == "Peri-LN (3 seeds)"
    found = band(group, training_curve("loss"))
    assert found.mean == pytest.approx([loss_at(step) + 0.3 for step in range(1, 41)])
    assert found.high - found.low == pytest.approx(np.full(40, 0.6))


def test_runs_that_each_continue_one_of_their_own_seed_are_one_line(tmp_path: Path) -> None:
    def tuned(seed: int, start: str) -> Record:
        folder = tmp_path / f"tuned_seed-{seed}_{start}"
        return read_run(write_run(folder, seed=seed, checkpoint__start_from=f"runs/{start}@40"))

    own = [tuned(seed, f"base_seed-{seed}") for seed in (1, 2)]
    assert [len(group.records) for group in group_records(own)] == [2]
    others = [tuned(1, "base_seed-10"), tuned(1, "base_seed-2"), tuned(1, "other_seed-1")]
    assert [len(group.records) for group in group_records([*own, *others])] == [2, 1, 1, 1]


def test_a_setting_that_did_not_exist_yet_does_not_set_a_run_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "old", seed=1), write_run(tmp_path / "new", seed=2)]
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    config["optim"]["added_later"] = None
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config))
    assert len(group_records([read_run(run) for run in runs])) == 1


def test_a_seed_that_is_not_finite_leaves_a_gap_and_one_that_ended_does_not(tmp_path: Path) -> None:
    records = seeds(tmp_path)
    rows = [{**row, "loss": None} if row["step"] == 5 else row for row in metric_rows(20)]
    records.append(read_run(write_run(tmp_path / "short", seed=9, metrics=rows)))
    found = band(group_records(records)[0], training_curve("loss"))
    assert np.flatnonzero(np.isnan(found.mean)).tolist() == [4]
    assert found.mean[19] == pytest.approx(loss_at(20) + 0.225)  # of four
    assert found.mean[20] == pytest.approx(loss_at(21) + 0.3)  # of three


def test_steps_that_not_every_seed_logged_are_left_out(tmp_path: Path) -> None:
    every_third = [row for row in metric_rows(40) if row["step"] % 3 == 0]
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, metrics=every_third)]
    found = band(group_records([read_run(run) for run in runs])[0], training_curve("loss"))
    assert found.x[:-1].tolist() == list(range(3, 40, 3))


def test_labels_say_what_differs(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{placement}{lr}", task__model__norm_placement=placement, optim__lr=lr)
        for placement in ("pre", "peri")
        for lr in (1e-3, 3e-4)
    ]
    records = [read_run(run) for run in runs]
    groups = group_records(records)
    assert [g.label for g in groups] == [
        "Pre-LN, lr 0.001",
        "Pre-LN, lr 0.0003",
        "Peri-LN, lr 0.001",
        "Peri-LN, lr 0.0003",
    ]
    assert len({group.look.color for group in groups}) == 4
    assert differing_keys(records) == ["name", "task.model.norm_placement", "optim.lr"]
    assert len(group_records(records, also_ignored=("optim.lr",))) == 2


def test_what_a_run_started_from_sets_it_apart_and_how_it_was_watched_does_not(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "scratch"),
        write_run(tmp_path / "tuned", checkpoint__start_from="runs/scratch@40"),
        write_run(tmp_path / "again", seed=1, watchdog__step=60.0, micro_batch_size=2, engine__threads=1),
    ]
    groups = group_records([read_run(run) for run in runs])
    assert [[record.label for record in group.records] for group in groups] == [["scratch", "again"], ["tuned"]]
    assert [group.label for group in groups] == [
        "Peri-LN, start_from None (2 seeds)",
        "Peri-LN, start_from runs/scratch@40",
    ]


def test_without_its_facts_every_setting_sets_a_run_apart_and_that_is_said(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)]
    for run in runs:
        (run / "settings.json").unlink()
    records = [read_run(run) for run in runs]
    assert all("settings.json is missing" in record.notes[0] for record in records)
    assert [group.label for group in group_records(records)] == ["Peri-LN, seed 0", "Peri-LN, seed 1"]
    newer = read_run(write_run(tmp_path / "c", seed=2))  # knows it for all of them
    assert [group.label for group in group_records([*records, newer])] == ["Peri-LN (3 seeds)"]


def test_inspected_models_are_groups_of_their_own() -> None:
    records = [Record(label=name, folder=Path(name), placement="pre") for name in ("one", "two")]
    assert [group.label for group in group_records(records)] == ["one", "two"]


def test_of_many_lines_the_best_of_each_placement_is_shown_over_depth(tmp_path: Path) -> None:
    records = [
        read_run(write_run(tmp_path / f"{p}{lr}", task__model__norm_placement=p, optim__lr=lr, offset=lr))
        for p in ("pre", "peri")
        for lr in (1.0, 0.1, 0.2, 0.3)
    ]
    groups, notes = for_depth(records)
    assert [group.label for group in groups] == ["Pre-LN, lr 0.1", "Peri-LN, lr 0.1"]
    assert "Of 8 lines" in notes[0]


def test_progress_is_counted_in_tokens_else_samples_else_steps(tmp_path: Path) -> None:
    text = read_run(write_run(tmp_path / "text"))
    vision = read_run(write_depth_run(tmp_path / "vision"))
    waiting = read_run(write_run(tmp_path / "waiting", metrics=[]))
    assert [axis_of(records) for records in ([text, waiting], [text, vision], [waiting], [])] == [
        "tokens", "samples", "step", "step"
    ]  # fmt: skip
    assert progress(text, np.array([0, 1, 50]), "tokens").tolist() == [0, TOKENS_PER_STEP, 50 * TOKENS_PER_STEP]
    assert np.isnan(progress(waiting, np.array([1]), "tokens")).all()


def test_thinning_keeps_extremes_and_gaps(tmp_path: Path) -> None:
    rows = [{"step": step, "samples": step, "tokens": step, "loss": 1.0, "lr": 0.0} for step in range(1, 50_001)]
    rows[12_345]["loss"] = 99.0
    rows[23_456]["loss"] = -5.0
    rows[34_567]["loss"] = None  # type: ignore[typeddict-item]
    run = read_run(write_run(tmp_path / "run", metrics=rows, steps=50_000, activations=[], gradients=[]))
    found = thin_out(band(group_records([run])[0], training_curve("loss")))
    assert len(found.x) <= 2000
    assert (np.nanmax(found.mean), np.nanmin(found.mean), int(np.isnan(found.mean).sum())) == (99.0, -5.0, 1)
    assert (found.x[0], found.x[-1]) == (1, 50_000)


def test_rows_of_the_real_format_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics=[], activations=[], gradients=[])
    row = {"step": 1, "layer": None, "parameter": "model.norm.weight", "numel": 64, "norm": 0.5, "parameter_norm": 8.0,
           "update_ratio": None, "scale_min": 1.0, "scale_mean": 1.0, "scale_max": 1.0}  # fmt: skip
    (folder / "gradients.jsonl").write_text(json.dumps(row) + "\n")
    gradients = read_run(folder).gradients
    assert math.isnan(column(gradients, "update_ratio")[0])
    assert column(gradients, "norm_role")[0] is None


def test_runs_are_sorted_by_numbers_and_else_stay_as_given() -> None:
    from analysis.groups import by_numbers

    def record(placement: str, lr: float) -> Record:
        config = {"optim": {"lr": lr}, "task": {"model": {"norm_placement": placement}}}
        return Record(label=f"{placement} {lr}", folder=Path(), config=config)

    given = [record(placement, lr) for placement in ("pre", "peri") for lr in (0.01, 0.001, 0.03)]
    assert [r.label for r in by_numbers(given)] == [f"{p} {lr}" for lr in (0.001, 0.01, 0.03) for p in ("pre", "peri")]
    assert by_numbers(given[::3]) == given[::3]


def test_folders_and_settings_are_read_as_training_writes_them(tmp_path: Path) -> None:
    """Analysis reads run folders as a documented format and imports nothing of training."""
    for step in (1, 500, 1_234_567):
        assert step_of(step_name(step)) == step
    assert step_of("step_000500.partial") is None
    tree = yaml.safe_load(to_yaml(load(tiny_file(tmp_path), ["task.model.norm_placement=[pre, peri]"])))
    given = {
        path: value for path, value in leaves(tree).items() if value != []
    }  # an empty list has no entries to compare
    assert given == settings_by_path(tree)
