"""The table of the last validation: ours beside what does not learn, over seeds, with the best marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.figures import loss as loss_figures
from analysis.figures import training as training_figures
from analysis.groups import for_depth, group_records
from analysis.metrics import ValidationMetric, metric_of, validation_metrics
from analysis.page.contents import Section, Spread, Table, number_text
from analysis.page.writing import write_page
from analysis.report import tables
from analysis.runs import Record, read_run
from analysis.validation import comparisons
from tests.analysis.synthetic import loss_at, write_filter_run, write_run


def named(table: Table) -> dict[str, list[Any]]:
    return {row[0]: list(row[1:]) for row in table.rows}


def bold(table: Table) -> set[tuple[str, str]]:
    return {(table.rows[row][0], table.header[column]) for row, column in table.best}


def of_scale(folder: Path, scale: int, **changes: Any) -> Record:
    data = {"scale": scale, "sources": [{"path": "scenes"}], "validation_sources": [{"path": "scenes"}]}
    task = {"kind": "depth_upsampling", "model": {"architecture": "fdkn"}, "data": data}
    return read_run(write_filter_run(folder, task=task, **changes))


@pytest.mark.parametrize(
    ("column", "method", "name", "words", "lower"),
    [
        ("validation_rmse", "", "rmse", "RMSE", True),
        ("validation_bicubic_rmse", "bicubic", "rmse", "RMSE", True),
        ("validation_joint_bilateral_edge_psnr", "joint_bilateral", "edge_psnr", "edge PSNR", False),
        ("validation_edge_psnr", "", "edge_psnr", "edge PSNR", False),
        ("validation_input_psnr", "input", "psnr", "PSNR", False),
        ("validation_constant_guidance_rmse", "constant_guidance", "rmse", "RMSE", True),
        ("validation_bits_per_byte", "", "bits_per_byte", "bits per byte", True),
        ("validation_colorfulness", "", "colorfulness", "colorfulness", None),
    ],
)
def test_columns_are_told_apart(column: str, method: str, name: str, words: str, lower: bool | None) -> None:
    metric = metric_of(column)
    assert metric == ValidationMetric(method, name)
    assert (metric.words, metric.is_lower_better, metric.column) == (words, lower, column)


def test_ours_stands_below_the_baselines_and_the_best_is_marked(tmp_path: Path) -> None:
    records = [read_run(write_filter_run(tmp_path / f"s{seed}", seed=seed, better=1 + seed)) for seed in (0, 1)]
    (table,) = tables.validation(records)
    assert list(table.header) == ["method", "loss", "RMSE (cm)", "step"]
    rows = named(table)
    assert list(rows) == ["Bicubic", "Joint bilateral", "Guided filter", "s0 (2 seeds)"]
    assert rows["Bicubic"] == [0.2, 4.0, None]
    assert rows["Guided filter"] == [None, 3.8, None]
    assert rows["s0 (2 seeds)"] == [pytest.approx(0.05), pytest.approx(Spread(2.625, 1.75, 3.5)), 40]
    assert bold(table) == {("s0 (2 seeds)", "loss"), ("s0 (2 seeds)", "RMSE (cm)")}
    assert "lower is better for loss, RMSE." in table.caption


def test_a_baseline_that_wins_is_marked(tmp_path: Path) -> None:
    (table,) = tables.validation([read_run(write_filter_run(tmp_path / "bad", better=0.5))])
    assert ("Guided filter", "RMSE (cm)") in bold(table)
    assert ("bad", "RMSE (cm)") not in bold(table)


def test_the_highest_ratio_is_the_best(tmp_path: Path) -> None:
    row = {"psnr": 31.0, "edge_psnr": 27.0, "input_psnr": 24.0, "input_edge_psnr": 28.0, "joint_bilateral_psnr": 30.0}
    named_row = {f"validation_{name}": value for name, value in row.items()}
    metrics = [{"step": 1, "samples": 1, "loss": 1.0}, {"step": 1, "samples": 1, **named_row}]
    run = write_run(tmp_path / "run", metrics=metrics, activations=[], gradients=[], task={"kind": "texture_removal"})
    (table,) = tables.validation([read_run(run)])
    assert list(table.header) == ["method", "PSNR (dB)", "edge PSNR (dB)", "step"]
    assert bold(table) == {("Input", "edge PSNR (dB)"), ("run", "PSNR (dB)")}
    assert "higher is better for PSNR, edge PSNR." in table.caption


def test_sources_have_columns_of_their_own_with_their_units(tmp_path: Path) -> None:
    row = {"rmse": 3.0, "near_rmse": 2.0, "far_rmse": 4.0, "bicubic_near_rmse": 5.0, "f_measure": 0.9}
    metrics = [{"step": 1, "samples": 1, "loss": 1.0},
               {"step": 1, "samples": 1, **{f"validation_{name}": value for name, value in row.items()}}]  # fmt: skip
    sources = [{"path": "a", "label": "near", "unit": "cm"}, {"path": "b", "label": "far", "unit": "levels"}]
    data = {"scale": 8, "unit": "m", "sources": [{"path": "s"}], "validation_sources": sources}
    task = {"kind": "depth_upsampling", "model": {"architecture": "fdkn"}, "data": data}
    (table,) = tables.validation([read_run(write_filter_run(tmp_path / "run", metrics=metrics, task=task))])
    assert list(table.header)[1:-1] == ["F measure", "RMSE (m)", "far RMSE (levels)", "near RMSE (cm)"]
    assert ("run", "near RMSE (cm)") in bold(table)
    assert "higher is better for F measure" in table.caption


def test_a_language_model_has_a_plain_table(tmp_path: Path) -> None:
    (table,) = tables.validation([read_run(write_run(tmp_path / "run"))])
    assert list(table.header) == ["runs", "loss", "bits per byte", "step"]
    assert [list(row) for row in table.rows] == [
        ["Peri-LN", pytest.approx(loss_at(40) + 0.1), pytest.approx((loss_at(40) + 0.1) / 3), 40]
    ]
    assert not table.best
    assert "Bold" not in table.caption


def test_runs_judged_by_different_data_have_a_table_each(tmp_path: Path) -> None:
    records = [of_scale(tmp_path / "x8", 8, better=2), of_scale(tmp_path / "x16", 16)]
    found = tables.validation(records)
    assert [table.title for table in found] == ["Validation, scale 8", "Validation, scale 16"]
    assert [list(named(table))[-1] for table in found] == ["x8", "x16"]
    assert [arena.label for arena in comparisons(records)] == ["scale 8", "scale 16"]


def test_what_is_not_finite_or_not_there_is_said(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "samples": 1, "loss": 1.0},
        {"step": 1, "samples": 1, "validation_rmse": 2.0, "validation_bicubic_rmse": 4.0},
        {"step": 2, "samples": 2, "validation_rmse": None},
    ]
    broken = read_run(write_filter_run(tmp_path / "run", metrics=rows, steps=2))
    (table,) = tables.validation([broken])
    assert named(table) == {"Bicubic": [4.0, None], "run": ["not finite", 2]}  # a baseline need not be repeated
    assert not table.best
    empty = read_run(write_filter_run(tmp_path / "empty", metrics=[]))
    assert tables.validation([empty]) == []
    assert validation_metrics([empty]) == []


def test_other_guidances_are_rows_below_their_run(tmp_path: Path) -> None:
    row = {"validation_rmse": 2.0, "validation_constant_guidance_rmse": 2.5, "validation_shifted_guidance_rmse": 3.0}
    metrics = [{"step": 1, "samples": 1, "loss": 1.0}, {"step": 1, "samples": 1, **row}]
    run = read_run(write_filter_run(tmp_path / "run", metrics=metrics, steps=1))
    (table,) = tables.validation([run])
    assert named(table) == {
        "run": [2.0, 1], "run, constant guidance": [2.5, 1], "run, shifted guidance": [3.0, 1]
    }  # fmt: skip
    plate = training_figures.validation([run])
    assert [panel.name for panel in plate.panels] == ["rmse"]
    labels = [line.get_label() for line in plate.panels[0].figure.axes[0].get_lines()]
    assert labels == ["run", "run, constant guidance", "run, shifted guidance"]


def test_baselines_are_horizontal_lines(tmp_path: Path) -> None:
    record = read_run(write_filter_run(tmp_path / "run"))
    plate = training_figures.validation([record])
    assert [panel.name for panel in plate.panels] == ["rmse"]
    axes = plate.panels[0].figure.axes[0]
    found = {str(line.get_gid()): line for line in axes.get_lines() if line.get_gid()}
    heights = {gid: set(map(float, line.get_ydata())) for gid, line in found.items()}  # type: ignore[union-attr]
    assert heights == {"bicubic baseline": {4.0}, "joint_bilateral baseline": {3.9}, "guided_filter baseline": {3.8}}
    assert axes.get_ylabel() == "validation RMSE (cm)"
    assert axes.get_ylim()[1] > 4
    loss = loss_figures.loss([record])
    assert "baselines without training" in loss.caption
    assert [line.get_gid() for line in loss.panels[0].figure.axes[0].get_lines() if line.get_gid()] == [
        "bicubic baseline"
    ]
    text = loss_figures.loss([read_run(write_run(tmp_path / "text"))])
    assert "baselines without training" not in text.caption


def test_spreads_and_marks_reach_the_page(tmp_path: Path) -> None:
    assert number_text(Spread(2.0, 1.5, 2.5)) == "2.000 (1.500 to 2.500)"
    table = Table(title="t", header=["a", "b"], rows=[["x", Spread(2.0, 1.5, 2.5)], ["y", None]], best=[(0, 1)])
    text = write_page(tmp_path / "out", "x", [Section(title="s", tables=[table])]).read_text()
    assert '<td class="number"><strong>2.000 (1.500&nbsp;to&nbsp;2.500)</strong></td>' in text
    assert '<th scope="col" class="number">b</th>' in text
    assert '<td class="number">-</td>' in text


def test_runs_without_a_placement_are_told_apart(tmp_path: Path) -> None:
    """By colors of their own, and groups of seeds by the settings in which they differ."""
    records = [of_scale(tmp_path / f"{scale}-{seed}", scale, seed=seed) for scale in (4, 8) for seed in (0, 1)]
    groups = group_records(records)
    assert [group.label for group in groups] == ["scale 4 (2 seeds)", "scale 8 (2 seeds)"]
    assert len({group.look.color for group in groups}) == 2
    many = [read_run(write_filter_run(tmp_path / f"n{i}", optim__lr=0.1 * i, better=i)) for i in range(1, 9)]
    shown, notes = for_depth(many)  # in a panel each
    assert (len(shown), notes) == (8, [])
    assert len({group.look for group in shown}) == 8
    shown, notes = for_depth(many, most=6)  # in one panel
    assert len(shown) == 6
    assert len({group.look for group in shown}) == 6
    assert notes[0].startswith("Of 8 lines")
