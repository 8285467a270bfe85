"""Tables that describe runs: upright for few, a row per group for many, and never wider than a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis.page.contents import Spread, Table, number_text
from analysis.page.markup import _LONGEST_WORD
from analysis.report import facts
from analysis.report.report import report_sections
from analysis.runs import Record, read_runs
from tests.analysis.synthetic import metric_rows, write_filter_run, write_run

PAGE = 1280 - 2 * 16 - 17  # pixels: a window without its margins and its scroll bar
LETTER, PADDING = 8.8, 20.2  # pixels at .86rem, as wide as DejaVu Sans Bold; of both sides of a cell, with its line


def narrowest(table: Table) -> float:
    """Return the width that a table needs at least, in pixels: that of the longest words of each column."""
    cells = [table.header, *table.rows]
    return sum(PADDING + LETTER * max(_longest(row[i]) for row in cells) for i in range(len(table.header)))


def _longest(value: Any) -> int:
    words = number_text(value).split()
    if isinstance(value, Spread):  # "3.4" and "(3.3 to 3.5)"
        words = [words[0], " ".join(words[1:])]
    words = [part for word in words for part in re.split(r"(?<=[./_])(?=[A-Za-z])", word)]
    longest = max(map(len, words), default=0)
    return min(longest, 17) if longest > _LONGEST_WORD else longest  # 9rem, as a longer word is broken anywhere


def sweep(place: Path, placements: Sequence[str], *, rates: Sequence[float], seeds: int) -> list[Record]:
    folders = [
        write_run(place / f"a-sweep-with-a-long-name-{p}-lr{rate}-seed{seed}", task__model__norm_placement=p,
                  optim__lr=rate, seed=seed, offset=rate + 0.01 * seed, output_dir=str(place / p / f"{rate}{seed}"),
                  activations=[], gradients=[])
        for p in placements for rate in rates for seed in range(seeds)
    ]  # fmt: skip
    return read_runs([str(folder) for folder in folders])[0]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    place = tmp_path_factory.mktemp("many")
    return sweep(place, ("pre", "post", "peri", "output"), rates=(1e-3, 2e-3, 3e-3, 4e-3), seeds=3)


def tables_of(records: Sequence[Record]) -> list[Table]:
    return [table for section in report_sections(records) for table in section.tables]


@pytest.mark.parametrize("count", [1, 3, 6, 48])
def test_no_table_is_wider_than_a_page(many: Sequence[Record], count: int) -> None:
    tables = tables_of(many[:count])
    assert {table.title for table in tables} >= {"Facts", "Files", "Validation"}
    for table in tables:
        assert narrowest(table) <= PAGE, table.title


def test_no_table_of_many_settings_and_metrics_is_wider_than_a_page(tmp_path: Path) -> None:
    names = [f"optim__setting_number_{i}" for i in range(12)]
    folders = [
        write_filter_run(
            tmp_path / f"r{i}", better=1 + i, images=None, task__model__x="y" * 90, **dict.fromkeys(names, i)
        )
        for i in range(9)
    ]
    tables = tables_of(read_runs([str(folder) for folder in folders])[0])
    parts = [table for table in tables if table.title.startswith("Differences, part")]
    assert len(parts) == 2
    assert sum(len(table.header) - 1 for table in parts) == 12
    for table in tables:
        assert narrowest(table) <= PAGE, table.title


def test_facts_of_few_runs_stand_upright_and_equal_ones_are_stated_once(many: Sequence[Record]) -> None:
    table = facts.facts(many[:3])
    assert table.header == ["fact", *(record.label for record in many[:3])]
    assert table.same["steps"] == "40 of 40"
    assert table.same["placement"] == "Pre-LN"
    names = [row[0] for row in table.rows]
    assert names == ["training loss", "validation loss", "best validation loss", "validation bits per byte", "seed"]
    assert not set(names) & set(table.same)


def test_facts_of_many_runs_have_a_row_per_group(many: Sequence[Record]) -> None:
    table = facts.facts(many)
    assert len(table.rows) == 16
    assert [row[0] for row in table.rows][:2] == ["Pre-LN, lr 0.001 (3 seeds)", "Pre-LN, lr 0.002 (3 seeds)"]
    of_first = dict(zip(table.header, table.rows[0], strict=True))
    losses = [facts._facts_of(record, many)["validation loss"] for record in many if "-pre-lr0.001-" in record.label]
    assert of_first["validation loss"] == pytest.approx((sum(losses) / 3, min(losses), max(losses)))
    assert table.same["steps"] == "40 of 40"
    assert "best validation loss" not in table.header  # the last is the best


def test_a_fact_that_has_no_column_is_counted(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"r{i}", seed=i, activations=[], gradients=[]) for i in range(7)]
    (folders[0] / "environment.json").write_text('{"device": "cuda", "precision": "bf16"}')
    table = facts.facts(read_runs([str(folder) for folder in folders])[0])
    assert table.same["device"] == "x86_64 (6), cuda (1)"
    assert table.same["precision"] == "fp32 (6), bf16 (1)"


def test_groups_with_different_ends_are_counted(tmp_path: Path) -> None:
    bad = [{**row, "loss": None} if row["step"] == 40 and "loss" in row else row for row in metric_rows(40)]
    folders = [
        write_run(tmp_path / f"r{i}", seed=i, activations=[], gradients=[], metrics=bad if i == 3 else None)
        for i in range(7)
    ]
    table = facts.facts(read_runs([str(folder) for folder in folders])[0])
    of_group = dict(zip(table.header, table.rows[0], strict=True))
    assert of_group["state"] == "finished (6), diverged (1)"


def test_differences_of_many_runs_have_a_row_per_group(many: Sequence[Record]) -> None:
    (table,) = facts.differences(many)
    assert table.header == ["runs", "task.model.norm_placement", "optim.lr"]
    assert len(table.rows) == 16
    assert table.rows[0] == ["Pre-LN, lr 0.001 (3 seeds)", "pre", "0.001"]
    assert table.same["seed"] == "0 (16), 1 (16), 2 (16)"
    assert table.same["output_dir"].endswith("and 44 other values")


def test_runs_that_share_data_share_rows(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"r{i}", seed=i, activations=[], gradients=[]) for i in range(5)]
    for i, folder in enumerate(folders):
        windows = 100 if i else 7
        (folder / "environment.json").write_text(f'{{"data": {{"training_windows": {windows}}}}}')
    table = facts.data(read_runs([str(folder) for folder in folders])[0])
    assert table is not None
    assert [list(row) for row in table.rows] == [["r0", "training", 7], ["r1, r2, r3 and 1 more", "training", 100]]


def test_a_note_that_is_true_of_all_runs_is_given_once(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"r{i}", seed=i, activations=[], gradients=[]) for i in range(3)]
    for folder in folders:
        (folder / "environment.json").unlink()
    (folders[0] / "settings.json").unlink()
    notes = facts.collected_notes(read_runs([str(folder) for folder in folders])[0])
    assert [note.partition(":")[0] for note in notes] == ["r0", "all 3 runs"]
