"""Reports on box-supervised segmentation: right numbers in tables and bars, ranks by accuracy and mIoU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from analysis.figures import training as training_figures
from analysis.figures.class_iou import class_bars, class_curves, colors
from analysis.figures.training_metrics import training_metrics
from analysis.images.class_scores import PREDICTION, class_names, label_scores, prediction_scores, without_repetition
from analysis.images.pseudo_labels import LabelFacts, read_label_facts
from analysis.metrics import class_in_metrics, own_metrics
from analysis.page.contents import Section, Table
from analysis.page.writing import write_page
from analysis.report import tables
from analysis.report.report import report_sections
from analysis.report.segmentation import by_class, quality, segmentation_sections
from analysis.runs import Record, read_run
from analysis.style import Plot, series_of
from tests.analysis.synthetic import write_run
from tests.analysis.synthetic_segmentation import (
    IOU,
    LAST,
    segmented_image,
    write_box_run,
    write_labels,
    write_segmentation_run,
)

NAN = pytest.approx(math.nan, nan_ok=True)


def rows(table: Table) -> dict[str, list[Any]]:
    return {row[0]: list(row[1:]) for row in table.rows}


def labeled(folder: Path, **changes: Any) -> Record:
    run = write_box_run(folder)
    write_labels(run, **changes)
    return read_run(run)


def facts_of(record: Record) -> LabelFacts:
    facts, found = read_label_facts(record)
    assert facts is not None
    assert not found
    return facts


def test_the_table_has_a_row_per_kind_of_label_and_per_segmentation_run(tmp_path: Path) -> None:
    """mIoU of background, cat and dog, by hand; at the last step the IoU are 0.9, 0.6 and 0.3."""
    records = [labeled(tmp_path / "bap"), read_run(write_segmentation_run(tmp_path / "nal"))]
    (section,) = segmentation_sections(records)
    table, of_labels, classes = section.tables
    assert rows(table) == {
        "filled boxes, bap": ["training", pytest.approx(0.4), None, 7, 40],
        "GrabCut, bap": ["training", pytest.approx(0.5), None, 7, 40],
        "unary, bap": ["training", pytest.approx(0.3), None, 7, 40],
        "CRF, bap": ["training", pytest.approx(0.6), None, 7, 40],
        "retrieved, bap": ["training", pytest.approx(0.6), None, 7, 40],
        "agreeing pixels only, bap": ["training", 0.85, None, 7, 40],
        "nal": ["validation", pytest.approx(0.6), pytest.approx(0.95), None, 40],
    }
    assert "cannot be compared with the others" in table.caption
    assert not table.best
    assert rows(of_labels) == {"bap": [40, 9, 0.93, 0, 0.25]}
    assert list(classes.header) == [
        "class",
        "filled boxes",
        "GrabCut",
        "unary, bap",
        "CRF, bap",
        "retrieved, bap",
        "nal",
    ]
    assert rows(classes)["cat"] == [0.4, 0.5, 0.3, 0.6, 0.5, pytest.approx(0.6)]
    assert list(rows(classes)) == ["background", "cat", "dog"]


def test_bars_are_the_mean_and_the_classes_of_each_series(tmp_path: Path) -> None:
    records = [labeled(tmp_path / "bap"), read_run(write_segmentation_run(tmp_path / "nal"))]
    (section,) = segmentation_sections(records)
    (plate,) = section.plates
    (axes,) = plate.panels[0].figure.axes
    heights = np.array(
        [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle) and bar.get_gid() != "mean"]
    ).reshape(6, 4)
    assert heights[0] == pytest.approx([0.4, 0.6, 0.4, 0.2])
    assert heights[5] == pytest.approx([0.6, 0.9, 0.6, 0.3])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["mean", "background", "cat", "dog"]
    figure = plate.panels[0].figure
    assert isinstance(figure, Plot)
    numbers = {(line.label, line.quantity): float(line.y[0]) for line in series_of(figure)}
    assert numbers["CRF, bap", "dog"] == 0.4
    assert len(numbers) == 24
    assert "measured on different images" in plate.caption
    assert '"-"' not in plate.caption


def test_labels_that_learn_nothing_stand_once_and_those_of_each_classifier_beside_them(tmp_path: Path) -> None:
    """In whatever order the runs come; where they differ, as on other images, they are the runs' own."""
    gap = labeled(tmp_path / "gap", iou={**IOU, "crf": [0.7, 0.5, 0.3]})
    bap = labeled(tmp_path / "bap")
    for order in ([gap, bap], [bap, gap]):
        scores = without_repetition([each for record in order for each in label_scores(facts_of(record))])
        assert [each.label for each in scores if each.kind in ("filled_boxes", "grabcut")] == [
            "filled boxes",
            "GrabCut",
        ]
        assert {each.label: each.miou for each in scores if each.kind == "crf"} == {
            "CRF, gap": pytest.approx(0.5), "CRF, bap": pytest.approx(0.6)
        }  # fmt: skip
    other = labeled(tmp_path / "other", iou={**IOU, "filled_boxes": [0.5, 0.5, 0.5]})
    scores = without_repetition([each for record in (bap, other) for each in label_scores(facts_of(record))])
    assert [each.label for each in scores if each.kind == "filled_boxes"] == [
        "filled boxes, bap",
        "filled boxes, other",
    ]
    assert len(set(map(str, colors([each for each in scores if each.kind in ("crf", "retrieved")])))) == 4


def test_a_class_that_never_occurs_has_no_bar_and_does_not_count(tmp_path: Path) -> None:
    run = read_run(write_segmentation_run(tmp_path / "run", iou={"background": 0.8, "cat": None, "dog": 0.4}))
    scores = prediction_scores(run)
    assert scores is not None
    assert scores.iou == {"background": pytest.approx(0.8), "cat": NAN, "dog": pytest.approx(0.4)}
    assert scores.miou == pytest.approx(0.6)
    plate = class_bars([scores])
    (axes,) = plate.panels[0].figure.axes
    assert sum(text.get_text() == "-" for text in axes.texts) == 1
    assert plate.caption.endswith('A "-": the class does not occur there.')
    assert rows(by_class([scores]))["cat"] == [None]
    unknown = labeled(tmp_path / "labels", iou={**IOU, "crf": [0.8, None, 0.4]})
    (crf,) = (each for each in label_scores(facts_of(unknown)) if each.kind == "crf")
    assert math.isnan(crf.iou["cat"])


def test_names_with_spaces_and_accents_come_from_labels_images_or_settings(tmp_path: Path) -> None:
    names = ("background", "caf\u00e9 au lait", "tv/monitor")
    iou = {class_in_metrics(name): 0.5 for name in names}
    assert list(iou) == ["background", "caf\u00e9_au_lait", "tv_monitor"]
    bare = read_run(write_segmentation_run(tmp_path / "bare", iou=iou))
    assert class_names([scores for scores in [prediction_scores(bare)] if scores]) == list(iou)
    images = {f"{LAST}/a.npz": segmented_image(classes=np.array(names))}
    for record, known in (
        (bare, names),
        (read_run(write_segmentation_run(tmp_path / "images", iou=iou, images=images)), ()),
        (read_run(write_segmentation_run(tmp_path / "set", iou=iou, task__data__classes=list(names[1:]))), ()),
    ):
        scores = prediction_scores(record, known)
        assert scores is not None
        assert list(scores.iou) == list(names)


@pytest.mark.parametrize("count", [1, 40])
def test_few_and_many_classes_fit_the_figure(tmp_path: Path, count: int) -> None:
    classes = ["background", *(f"class number {i} of many" for i in range(count))]
    iou = {kind: [0.5] * (count + 1) for kind in IOU}
    record = labeled(tmp_path / "run", classes=classes, iou=iou)
    plate = class_bars(label_scores(facts_of(record)))
    figure = plate.panels[0].figure
    width = figure.get_size_inches()[0]
    assert 3.5 <= width < 5.25 if count == 1 else width == pytest.approx(7.2)
    assert sum(len(axes.get_xticklabels()) for axes in figure.axes) == count + 2
    page = write_page(tmp_path / "out", "x", [Section(title="x", plates=[plate])]).read_text()
    assert ('class="panel wide"' in page) == (count == 40)


def test_of_many_runs_the_bars_are_bounded_and_the_rest_is_named(tmp_path: Path) -> None:
    records = [read_run(write_segmentation_run(tmp_path / f"r{i:02}")) for i in range(18)]
    (section,) = segmentation_sections(records)
    assert section.plates[0].missing == [f"r{i}: more than 16 bars per class; see the table" for i in (16, 17)]
    assert len(section.tables[0].rows) == 18


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b'{"format": 1, "classes"', "cannot be read"),
        (b"[]", "it is not of format 1"),
        (b'{"format": 2}', "it is not of format 1"),
        (b'{"format": 1, "classes": ["a"]}', "cannot be read (images)"),
        (b'{"format": 1, "classes": 3, "images": {}}', "classes is no list"),
        (b'{"format": 1, "classes": [], "images": {}, "quality": 3}', "quality is no section"),
        (b'{"format": 1, "classes": [], "images": {}, "quality": {"images": 1, "miou": {}, "iou": {"crf": 3}}}',
         "crf is no section"),
        (b'{"format": 1, "classes": [], "images": {}, "vanished": [3]}', "vanished is no list of boxes"),
        (b"\xff\xfe", "cannot be read"),
        (None, "its labels are not finished"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_read_are_notes_and_older_ones_count(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    run = write_box_run(tmp_path / "run")
    path = write_labels(run, step=40) / "labels.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    facts, found = read_label_facts(read_run(run))
    assert facts is None
    assert len(found) == 1
    assert reason in found[0]
    (section,) = segmentation_sections([read_run(run)])
    assert section.notes == [f"run: {found[0]}"]
    assert not section.plates[0].panels
    write_labels(run, step=20)
    facts, _ = read_label_facts(read_run(run))
    assert facts is not None
    assert facts.step == 20


def test_labels_without_truth_have_no_quality_and_vanished_boxes_are_named(tmp_path: Path) -> None:
    gone = [{"image": f"photo{i}", "box": i, "class": "dog", "why": "removed by the CRF"} for i in range(5)]
    record = labeled(tmp_path / "run", iou=None, vanished=gone, agreement=None)
    (section,) = segmentation_sections([record])
    assert [table.title for table in section.tables] == ["Pseudo labels"]
    assert rows(section.tables[0]) == {"run": [40, 9, None, 5, 0.25]}
    (plate,) = section.plates
    assert not plate.panels
    assert plate.missing[0].startswith("run: no mask of the labeled images is known")
    assert plate.findings[0].startswith("run: the CRF left 5 boxes without a pixel of their class")
    assert plate.findings[0].endswith("photo2, box 2 (dog): removed by the CRF; and 2 more.")


def test_labels_without_grabcut_have_no_row_of_it(tmp_path: Path) -> None:
    record = labeled(tmp_path / "run", iou={kind: values for kind, values in IOU.items() if kind != "grabcut"})
    assert "GrabCut, run" not in rows(quality(label_scores(facts_of(record))))


def test_other_tasks_and_bare_runs_have_no_such_section(tmp_path: Path) -> None:
    assert segmentation_sections([read_run(write_run(tmp_path / "text"))]) == []
    assert segmentation_sections([read_run(write_box_run(tmp_path / "boxes"))]) == []
    (section,) = segmentation_sections([read_run(write_segmentation_run(tmp_path / "new", metrics=[]))])
    assert section.plates[0].missing == ["new: not validated yet"]


def test_both_stages_have_parts_of_their_own_and_one_in_common(tmp_path: Path) -> None:
    records = [labeled(tmp_path / "bap"), read_run(write_segmentation_run(tmp_path / "nal"))]
    found = report_sections(records)
    assert [section.title for section in found][:3] == [
        "Pseudo labels and predictions", "box_classification: Runs", "box_classification: Training"
    ]  # fmt: skip
    assert "semantic_segmentation: Training" in [section.title for section in found]
    names = [plate.name for section in found for plate in section.plates]
    assert len(names) == len(set(names))
    of_boxes = next(section for section in found if section.title == "box_classification: Training")
    assert rows(of_boxes.tables[0]) == {"bap": [pytest.approx(0.075), pytest.approx(0.9), pytest.approx(0.95), 40]}
    assert list(of_boxes.tables[0].header) == ["runs", "loss", "box accuracy", "background accuracy", "step"]


def test_tables_and_curves_leave_single_classes_to_the_bars(tmp_path: Path) -> None:
    records = [read_run(write_segmentation_run(tmp_path / "run"))]
    assert [metric.name for metric in own_metrics(records)] == ["loss", "miou", "pixel_accuracy"]
    (table,) = tables.validation(records)
    assert list(table.header) == ["runs", "loss", "mIoU", "pixel accuracy", "step"]
    assert [panel.name for panel in training_figures.validation(records).panels] == ["miou", "pixel-accuracy"]


def test_each_class_has_a_curve_of_its_own(tmp_path: Path) -> None:
    """At step 10 n the IoU are n / 4 of the last; the cat never occurs."""
    iou = {"background": 0.8, "cat": None, "dog": 0.4}
    records = [read_run(write_segmentation_run(tmp_path / name, iou=iou, labels=name)) for name in "ab"]
    plate = class_curves(records)
    figure = plate.panels[0].figure
    assert isinstance(figure, Plot)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["background", "dog"]
    lines = {(line.label, line.quantity): line.y for line in series_of(figure)}
    assert lines["b", "IoU of dog"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert len(lines) == 4
    many = {f"c{i}": 0.5 for i in range(25)}
    records = [read_run(write_segmentation_run(tmp_path / f"r{i}", iou=many, labels=str(i))) for i in range(8)]
    plate = class_curves(records)
    assert len(plate.panels[0].figure.axes) == 20
    assert plate.missing[0] == "c20: more than 20 classes"
    assert plate.missing[-1] == "2 of 8 lines: those with the highest final validation mIoU are shown"
    assert not class_curves([read_run(write_box_run(tmp_path / "boxes"))]).panels


def test_training_metrics_are_curves_with_their_validation_as_markers(tmp_path: Path) -> None:
    plate = training_metrics([read_run(write_box_run(tmp_path / "boxes"))])
    assert [panel.name for panel in plate.panels] == ["box-accuracy", "background-accuracy"]
    figure = plate.panels[0].figure
    assert isinstance(figure, Plot)
    lines = {line.quantity: line for line in series_of(figure)}
    assert list(lines) == [
        "training box accuracy",
        "running mean of the training box accuracy",
        "validation box accuracy",
    ]
    assert lines["validation box accuracy"].y[-1] == pytest.approx(0.9)
    assert "Markers: the same on validation images." in plate.caption
    plate = training_metrics([read_run(write_segmentation_run(tmp_path / "run"))])
    assert [panel.name for panel in plate.panels] == ["agreeing-loss", "disagreeing-loss", "disagreement"]
    assert plate.panels[2].figure.axes[0].get_ylim()[0] == 0
    assert "Markers" not in plate.caption
    assert not training_metrics([read_run(write_run(tmp_path / "text"))]).panels


def test_an_empty_series_draws_nothing() -> None:
    assert not class_bars([]).panels
    assert PREDICTION not in IOU


def test_facts_survive_json(tmp_path: Path) -> None:
    """What is not a number in labels.json, as null is, is unknown."""
    run = write_box_run(tmp_path / "run")
    path = write_labels(run) / "labels.json"
    tree = json.loads(path.read_text())
    tree["quality"]["miou"]["crf"] = None
    tree["seconds_per_image"] = "long"
    path.write_text(json.dumps(tree))
    facts = facts_of(read_run(run))
    assert math.isnan(facts.miou["crf"])
    assert math.isnan(facts.seconds_per_image)
    assert rows(quality(label_scores(facts)))["CRF, run"][1] is None
