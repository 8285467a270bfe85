"""Ranking of runs of tasks whose main metric is better when higher: box accuracy and mIoU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.figures import training as training_figures
from analysis.groups import final_rank, group_records
from analysis.metrics import ValidationMetric, main_metric
from analysis.page.contents import Spread
from analysis.report.ranking import Result, ranking, result_of
from analysis.report.result import loss_map, notes, plain_text, sentence, sentences
from analysis.runs import Record, read_run
from tests.analysis.synthetic import write_run
from tests.analysis.synthetic_segmentation import write_box_run, write_segmentation_run


def result(records: list[Record]) -> Result:
    found = result_of(records)
    assert found is not None
    return found


def test_each_task_has_its_main_metric(tmp_path: Path) -> None:
    kinds = {
        "miou": write_segmentation_run(tmp_path / "a"),
        "box_accuracy": write_box_run(tmp_path / "b"),
        "loss": write_run(tmp_path / "c"),
    }
    for name, folder in kinds.items():
        assert main_metric([read_run(folder)]).name == name
    assert ValidationMetric("", "iou_loss").is_lower_better is False  # a class of this name
    assert ValidationMetric("", "miou").is_lower_better is False


def accurate(folder: Path, name: str, accuracies: tuple[float, ...], **changes: Any) -> list[Record]:
    return [
        read_run(write_box_run(folder / f"{name}-{i}", accuracy=value, seed=i, **changes))
        for i, value in enumerate(accuracies)
    ]


def test_the_highest_accuracy_wins_though_its_loss_is_the_same(tmp_path: Path) -> None:
    gap = accurate(tmp_path, "gap", (0.80, 0.82, 0.81), pooling="average")
    bap = accurate(tmp_path, "bap", (0.90, 0.91, 0.92))
    found = result([*gap, *bap])
    assert sentence(found) == (
        "Pooling background has the highest mean final validation box accuracy, 0.9100; its paired difference from "
        "pooling average is 0.100 (95 % interval 0.0752 to 0.125, 3 pairs)."
    )
    table = ranking(found)
    assert table.title == "Arms by final validation box accuracy"
    assert [row[0] for row in table.rows] == ["pooling background", "pooling average"]
    assert table.best == [(0, 2)]
    of_best = dict(zip(table.header, table.rows[0], strict=True))
    assert of_best["final validation box accuracy"] == pytest.approx(Spread(0.91, 0.90, 0.92))
    assert of_best["difference from pooling average"] == pytest.approx(0.1)
    assert of_best["final validation loss"] == pytest.approx(0.075)
    assert "learning-rate sensitivity" not in table.header
    assert "which is better" in table.caption
    assert plain_text(found).splitlines()[2] == "Final validation box accuracy by peak learning rate, mean over seeds"
    assert plain_text(found).splitlines()[4].split() == ["pooling", "background", "0.9100"]
    best, other = sorted(group_records([*gap, *bap]), key=final_rank)
    assert (best.name, other.name) == ("pooling background", "pooling average")


def test_a_difference_that_may_be_nothing_is_not_called_a_win(tmp_path: Path) -> None:
    gap = accurate(tmp_path, "gap", (0.80, 0.90, 0.85), pooling="average")
    bap = accurate(tmp_path, "bap", (0.90, 0.85, 0.90))
    text = sentence(result([*gap, *bap]))
    assert text.startswith("It cannot be told which arm is best: pooling background has the highest mean final")
    assert "is not clearly above zero" in text


def test_the_best_learning_rate_is_that_of_the_highest_miou(tmp_path: Path) -> None:
    """The lowest loss is at the other rate."""
    values = {("crf", 1e-3): (0.5, 0.2), ("crf", 1e-2): (0.6, 0.9), ("retrieved", 1e-3): (0.7, 0.3),
              ("retrieved", 1e-2): (0.4, 0.1)}  # fmt: skip
    records = [
        read_run(write_segmentation_run(tmp_path / f"{kind}-{rate:g}", iou={"background": miou}, loss=loss,
                                        labels=kind, optim__lr=rate))
        for (kind, rate), (miou, loss) in values.items()
    ]  # fmt: skip
    found = result(records)
    assert {arm.name.split()[-1]: arm.best.rate for arm in found.arms if arm.best} == {"crf": 1e-2, "retrieved": 1e-3}
    assert [row[2] for row in ranking(found).rows] == [pytest.approx(0.7), pytest.approx(0.6)]
    assert sentences(found)[1].startswith("From learning rate 0.001 to 0.01 the mIoU changes by -0.300 for")
    assert "retrieved is highest at 0.001" in sentences(found)[1]
    assert "crf is highest at 0.01" in sentences(found)[1]
    plate = loss_map(found)
    assert plate.title == "MIoU by arm and learning rate"
    assert "saturate" not in plate.caption
    sensitivity = training_figures.learning_rate(records)
    assert sensitivity.panels[0].figure.axes[0].get_ylabel() == "final validation mIoU"
    assert sensitivity.caption.startswith("Final validation mIoU against the peak learning rate")


def test_runs_without_the_main_metric_are_named(tmp_path: Path) -> None:
    records = [
        read_run(write_segmentation_run(tmp_path / "a")),
        read_run(write_segmentation_run(tmp_path / "b", labels="other", metrics=[{"step": 40, "loss": 1.0}])),
    ]
    found = result(records)
    assert "only a has a finished run with a validation mIoU" in sentence(found)
    assert notes(found) == ["b has no finished run with a validation mIoU (nothing validated)."]
    assert found.arms[1].cells[0].remark == "no mIoU"


def test_networks_validated_on_different_images_are_not_ranked(tmp_path: Path) -> None:
    records = [
        read_run(write_segmentation_run(tmp_path / name, task__data__validation_sources=[{"path": name}]))
        for name in ("a", "b")
    ]
    assert sentence(result(records)) == (
        "The arms were validated on different data, so their validation mIoU values cannot be compared."
    )
