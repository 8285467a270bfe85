"""The result of a comparison: sentence, tables, heat map, and the printed text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis import __main__ as entry
from analysis.figures.heat_map import heat_map
from analysis.page.contents import Spread
from analysis.report.extremes import extremes
from analysis.report.ranking import Result, equal_rates, ranking, result_of
from analysis.report.result import loss_map, notes, plain_text, sections, sentence
from analysis.runs import Record
from tests.analysis.report.swept import run
from tests.analysis.synthetic import metric_rows, write_run

SEEDS = (0, 1, 2)


def result(records: Sequence[Record], baseline: str | None = None) -> Result:
    found = result_of(records, baseline)
    assert found is not None
    return found


def arm(placement: str, losses: Sequence[float | None], **changes) -> list[Record]:
    return [run(placement, loss, seed=seed, **changes) for seed, loss in enumerate(losses)]


def test_the_winner_is_named_with_its_difference_interval_pairs_and_budget() -> None:
    found = result([*arm("pre", [3.0, 4.0, 5.0]), *arm("peri", [2.9, 3.91, 4.89])])
    assert sentence(found) == (
        "Peri-LN has the lowest mean final validation loss, 3.900 nats per token; its paired difference from Pre-LN is "
        "-0.100 nats per token (95 % interval -0.125 to -0.0752, 3 pairs) at 5 tokens per parameter."
    )


def test_with_several_arms_the_runner_up_and_the_baseline_are_compared() -> None:
    found = result([*arm("pre", [3.0, 3.1]), *arm("peri", [2.5, 2.6]), *arm("post", [2.8, 2.9])])
    assert sentence(found) == (
        "Peri-LN has the lowest mean final validation loss, 2.550 nats per token; its paired difference from the "
        "runner-up, Post-LN, is -0.300 nats per token (95 % interval -0.300 to -0.300, 2 pairs) at 5 tokens per "
        "parameter, and from Pre-LN -0.500 nats per token (95 % interval -0.500 to -0.500, 2 pairs)."
    )


def test_an_interval_with_zero_cannot_tell() -> None:
    found = result([*arm("pre", [3.0, 4.0, 5.0]), *arm("peri", [2.9, 4.1, 4.9])])
    assert sentence(found) == (
        "It cannot be told which arm is best: Peri-LN has the lowest mean final validation loss, 3.967 nats per token, "
        "but its paired difference from Pre-LN is not clearly below zero: -0.0333 nats per token (95 % interval -0.320 "
        "to 0.254, 3 pairs) at 5 tokens per parameter."
    )


def test_one_run_per_arm_is_an_order_and_no_finding() -> None:
    found = result([run("pre", 3.1), run("post", 4.0), run("peri", 3.0)])
    assert sentence(found) == (
        "In order of final validation loss: Peri-LN 3.000, Pre-LN 3.100, Post-LN 4.000 (nats per token) at 5 tokens "
        "per parameter; one run per arm cannot tell which is better."
    )
    assert not notes(found)
    assert [section.title for section in sections(found)] == ["Result", "Details of the result"]
    assert [plate.name for plate in sections(found)[0].plates] == ["claims-1"]  # one rate: nothing to map


def test_runs_without_common_seeds_cannot_tell() -> None:
    found = result(
        [run("pre", 3.0, seed=0), run("pre", 3.1, seed=1), run("peri", 2.0, seed=2), run("peri", 2.0, seed=3)]
    )
    assert sentence(found).endswith(
        "it cannot be told which of the first two is better, as no runs of theirs have the same seeds and samples."
    )
    one = result([*arm("pre", [3.0, 3.1]), run("peri", 2.0, seed=1), run("peri", 2.0, seed=7)])
    assert sentence(one).endswith("one pair of runs cannot tell which of the first two is better.")


def test_arms_without_finished_runs_are_named() -> None:
    found = result([*arm("pre", [None, None]), *arm("peri", [3.0, 3.0]), *arm("post", [3.1, 3.2], steps_done=5)])
    assert sentence(found) == (
        "It cannot be told which arm is best: only Peri-LN has a finished run with a validation loss."
    )
    assert notes(found) == [
        "Pre-LN has no finished run with a validation loss (2 diverged).",
        "Post-LN has no finished run with a validation loss (2 unfinished).",
    ]
    found = result([*arm("pre", [None, None]), *arm("peri", [3.0, 3.1]), *arm("post", [3.5, 3.6])])
    assert sentence(found).startswith("Among the arms with finished runs, Peri-LN has the lowest")
    nothing = result([run("pre", None), run("peri", None)])
    assert sentence(nothing) == "It cannot be told which arm is best: no arm has a finished run with a validation loss."


def test_arms_validated_on_different_data_are_not_ranked() -> None:
    other = {"seed": 0, "validation_fraction": 0.2}
    changed = [run("peri", 2.0)]
    changed[0].config["task"]["data"] = other  # type: ignore[index]
    found = result([run("pre", 3.0), *changed])
    assert sentence(found) == "The arms were validated on different data, so their losses cannot be compared."
    assert not sections(found)[0].tables


def test_notes_name_edges_unequal_rates_and_unpaired_runs() -> None:
    found = result([
        *(run("pre", 3.0 + lr, lr=lr) for lr in (1e-3, 1e-2)),
        *(run("peri", 3.0 - lr, lr=lr, samples="other") for lr in (1e-3, 1e-2, 1e-1)),
    ])  # fmt: skip
    assert notes(found) == [
        "At the edge of the learning rates tried, a better one may lie beyond: Pre-LN (lowest, 0.001); Peri-LN "
        "(highest, 0.1).",
        "The arms were trained at different learning rates; sensitivity is compared over the common ones.",
        "Peri-LN: 1 run has the seeds of a run of Pre-LN but not its samples (samples_hash), so no pair.",
    ]


def test_the_ranking_holds_what_was_swept() -> None:
    records = [*arm("pre", [3.0, 3.2]), *arm("pre", [3.5, None], lr=1e-2), *arm("peri", [2.9, 3.0]),
               *arm("peri", [3.0, 3.1], lr=1e-2, spikes=2)]  # fmt: skip
    table = ranking(result(records))
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [row["arm"] for row in rows] == ["Peri-LN", "Pre-LN"]
    peri, pre = rows
    assert peri["best learning rate"] == 1e-3
    assert peri["final validation loss (nats per token)"] == Spread(pytest.approx(2.95), 2.9, 3.0)  # type: ignore[arg-type]
    assert peri["difference from Pre-LN"] == pytest.approx(-0.15)
    assert peri["pairs"] == 2
    assert peri["tokens per parameter"] == "5"
    assert peri["learning-rate sensitivity"] == pytest.approx(0.05)
    assert pre["learning-rate sensitivity"] == pytest.approx((3.1 + (3.5 + 7.0) / 2) / 2 - 3.1)
    assert (peri["diverged"], pre["diverged"]) == ("0 of 4", "1 of 4")
    assert (peri["loss spikes"], pre["loss spikes"]) == (4, 0)
    assert pre["difference from Pre-LN"] == "baseline"
    assert "difference from Peri-LN" in ranking(result(records, "peri")).header


def test_equal_rates_are_compared_where_both_arms_have_them() -> None:
    found = result([*arm("pre", [3.0, 3.2]), *arm("peri", [2.9, 3.0]), *arm("peri", [2.0, 2.0], lr=1e-2)])
    (row,) = equal_rates(found).rows
    assert row[:2] == ["Peri-LN", 1e-3]
    assert row[2] == pytest.approx(-0.15)
    assert row[3:] == ["-0.785 to 0.485", 2, None]


def test_the_printed_text_is_an_aligned_table() -> None:
    records = [*arm("pre", [3.0, 3.2]), *arm("pre", [None, None], lr=1e-2), *arm("peri", [2.9, 3.1]),
               *arm("peri", [2.5, None], lr=1e-2), *arm("post", [7.5, 7.5], lr=1e-2)]  # fmt: skip
    lines = plain_text(result(records)).splitlines()
    assert lines[1:] == [
        "",
        "Final validation loss (nats per token) by peak learning rate, mean over seeds; * marks an arm's best",
        "           0.001              0.01",
        "Peri-LN  3.0000*  1 of 2 diverged",
        "Pre-LN   3.1000*         diverged",
        "Post-LN                  diverged",
    ]


def test_single_runs_at_two_rates_say_how_these_change_the_loss() -> None:
    losses = {"pre": (3.0, 3.9), "post": (2.9, 4.5), "peri": (3.2, 3.1)}
    found = result([run(placement, loss, lr=lr) for placement, both in losses.items()
                    for lr, loss in zip((3e-3, 3e-2), both, strict=True)])  # fmt: skip
    assert plain_text(found).splitlines() == [
        "In order of final validation loss, each at its best learning rate: Post-LN 2.900, Pre-LN 3.000, Peri-LN 3.100 "
        "(nats per token) at 5 tokens per parameter; one run per arm cannot tell which is better.",
        "",
        "From learning rate 0.003 to 0.03 the loss changes by -0.100 for Peri-LN, +0.900 for Pre-LN and +1.60 for "
        "Post-LN; Post-LN is lowest at 0.003, Peri-LN is lowest at 0.03 (one run each).",
        "",
        "Final validation loss (nats per token) by peak learning rate, one run each; * marks an arm's best",
        "           0.003     0.03",
        "Post-LN  2.9000*  4.5000",
        "Pre-LN   3.0000*  3.9000",
        "Peri-LN  3.2000   3.1000*",
    ]
    assert sections(found)[0].prose == [sentence(found), extremes(found.arms)]


def test_runs_that_did_not_finish_at_one_of_the_rates_are_named_and_not_compared() -> None:
    records = [run("peri", 3.2), run("peri", 3.1, lr=1e-2), run("pre", 3.0), run("pre", None, lr=1e-2),
               run("post", 2.0, steps_done=5), run("post", 7.5, lr=1e-2)]  # fmt: skip
    assert extremes(result(records).arms) == (
        "From learning rate 0.001 to 0.01 the loss changes by -0.100 for Peri-LN; Pre-LN is lowest at 0.001, only "
        "Peri-LN has a finished run at 0.01; Post-LN is unfinished at 0.001; Pre-LN diverged at 0.01; Post-LN diverged "
        "at 0.01 (one run each)."
    )
    assert extremes(result(records[:1] + records[2:]).arms) == ""  # none at both
    assert extremes(result([run("pre", 3.0), run("peri", 3.1)]).arms) == ""  # one rate
    seeded = [*arm("pre", [3.0, 3.1]), run("pre", 3.2, lr=1e-2), run("peri", 3.2), run("peri", 3.1, lr=1e-2)]
    assert extremes(result(seeded).arms) == ""


def test_thirteen_arms_at_six_rates_fit(tmp_path: Path) -> None:
    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    records = [
        run("peri", 3.0 + i / 100 + lr, lr=lr, optim__warmup=i / 100, spikes=i) for i in range(13) for lr in rates
    ]
    found = result(records)
    assert len(found.arms) == 13
    assert "and 7 more" in sentence(found)
    (panel,) = loss_map(found).panels
    width, height = panel.figure.get_size_inches()
    assert (width, height) == (7.0, pytest.approx(0.75 + 13 * 0.27))
    panel.figure.draw_without_rendering()
    (axes, *_) = panel.figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 78
    assert "3.030" in texts
    boxes = [text.get_window_extent() for text in axes.texts]
    cell = axes.transData.transform([(0, 0), (1, 1)])
    assert max(box.width for box in boxes) < abs(cell[1] - cell[0])[0]
    assert len(plain_text(found).splitlines()) == 19
    assert "and 7 more; " in extremes(found.arms)


def test_the_heat_map_writes_words_and_leaves_gaps_empty() -> None:
    cells: dict[tuple[int, int], float | str] = {(0, 0): 3.1234, (0, 1): "1 of 3 diverged", (1, 0): 12.0}
    figure = heat_map(["a", "b"], ["0.1", "0.2"], cells, positions=[0.1, 0.2], x="rate", color="loss", framed=[(0, 0)])
    axes = figure.axes[0]
    texts = {text.get_text(): text for text in axes.texts}
    assert set(texts) == {"3.123", "1 of 3\ndiverged", "12.000"}
    assert texts["3.123"].get_fontweight() == "bold"
    assert figure.get_size_inches()[0] == 3.5


def test_a_single_arm_has_no_result() -> None:
    assert result_of([run(lr=1e-3), run(lr=1e-2)]) is None


def test_the_command_prints_the_path_first_and_takes_arms_and_a_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        str(write_run(tmp_path / f"{placement}{seed}", task__model__norm_placement=placement, seed=seed, steps=20,
                      metrics=metric_rows(20, offset + seed), activations=[], gradients=[]))
        for placement, offset in (("pre", 0.0), ("peri", -0.5), ("post", 1.0))
        for seed in (0, 1)
    ]  # fmt: skip
    out = tmp_path / "out"
    assert entry.main(["report", *runs, "--out", str(out), "--arms", "pre,peri", "--baseline", "peri"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [str(out / "index.html"), ""]
    assert lines[2].startswith("Peri-LN has the lowest mean final validation loss, 3.994 nats per token; its paired")
    assert lines[3:] == [
        "",
        "Final validation loss (nats per token) by peak learning rate, mean over seeds",
        "          0.003",
        "Peri-LN  3.9944",
        "Pre-LN   4.4944",
    ]
    page = (out / "index.html").read_text()
    assert "4 runs of 6 given" in page
    assert "difference from Peri-LN" in page
    assert "Post-LN" not in page.replace("Post-LN keeps the variance", "")
    for option, text in (("--arms", "keel"), ("--baseline", "keel")):
        assert entry.main(["report", *runs, "--out", str(out), option, text]) == 2
        assert (
            f"{option} keel: no arm has this name; there are: pre (Pre-LN); peri (Peri-LN)" in capsys.readouterr().err
        )


def test_layers_are_shown_where_a_run_measures_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probes = {"activations_every": None, "gradients_every": None, "layers_every": 20}
    runs = [write_run(tmp_path / p, task__model__norm_placement=p, activations=[], gradients=[], probes=probes)
            for p in ("pre", "peri")]  # fmt: skip
    rows = [
        {"step": step, "layer": layer, "loss": 3.0, "loss_without": 3.5, "angular_distance": 0.25}
        for step in (20, 40)
        for layer in range(4)
    ]
    (runs[0] / "layers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 40, "la')
    assert entry.main(["report", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/index.html").read_text()
    assert "Contribution of single layers" in page
    assert "Not shown: peri: no layers.jsonl" in page
    assert "the last line of layers.jsonl is half-written" in page
    assert sorted(path.name for path in (tmp_path / "out/figures").glob("layers*.svg")) == [
        "layers-angle.svg", "layers-loss.svg"
    ]  # fmt: skip
