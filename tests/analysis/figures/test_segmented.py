"""Images of box-supervised segmentation in a report: what is read, what is drawn, in which colors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from analysis.figures.pictures.class_colors import class_color, color_legend, colored, cut
from analysis.figures.pictures.filtered import ImageOfRuns
from analysis.figures.pictures.segmented import choose_exhibits, exhibit
from analysis.images.saved import RunImages, read_images, saved_classes
from analysis.images.segmented import SegmentedImage
from analysis.page.contents import Section
from analysis.page.writing import write_page
from analysis.report.report import report_sections
from analysis.runs import read_run
from analysis.style import Plate
from modeling.segmentation.images_bap import voc_palette
from tests.analysis.synthetic import filtered_image, write_filter_run
from tests.analysis.synthetic_segmentation import (
    CLASSES,
    LAST,
    segmented_image,
    write_box_run,
    write_labels,
    write_segmentation_run,
)
from train.data.annotated.images import Annotated
from train.data.annotated.label_folder import PseudoLabels
from train.observe.gallery import RunGallery
from train.tasks.segmentation.exhibits import show_prediction, show_training

PANELS = ["boxes", "attention", "activation", "crf", "retrieved", "truth", "disagreement", "prediction", "classes"]


def read(folder: Path) -> RunImages:
    return read_images(read_run(folder))


def axes_of(plate: Plate, name: str) -> Axes:
    found = {panel.name: panel for panel in plate.panels}
    return found[name].figure.axes[0]


def title_of(plate: Plate, name: str) -> str:
    return axes_of(plate, name).get_title(loc="left")


def drawn(plate: Plate, name: str) -> np.ndarray:
    return np.asarray(axes_of(plate, name).get_images()[0].get_array())


def shown(folder: Path, *, name: str = "photo", **changes: Any) -> ImageOfRuns[SegmentedImage]:
    found = read(write_segmentation_run(folder, images={f"{LAST}/{name}.npz": segmented_image(**changes)}))
    assert not found.notes
    (image,), _ = choose_exhibits([found])
    return image


def test_the_colors_are_those_of_the_masks_that_tasks_write() -> None:
    assert [byte for number in range(256) for byte in class_color(number)] == voc_palette()
    assert colored(np.array([[0, 1, 255]], np.uint8)).tolist() == [[[0, 0, 0], [128, 0, 0], [224, 224, 192]]]


def test_there_is_a_panel_for_each_array_in_the_order_in_which_labels_are_made(tmp_path: Path) -> None:
    plate = exhibit(shown(tmp_path / "run"), 0)
    assert [panel.name for panel in plate.panels] == PANELS
    assert plate.is_row
    assert plate.title == "Training image photo, step 40"  # there is a confidence, which training images have
    assert drawn(plate, "attention").max() == 0.25
    assert drawn(plate, "activation").max() == 0.5
    assert drawn(plate, "truth")[0, 0].tolist() == [128, 0, 0]
    assert drawn(plate, "truth")[0, -1].tolist() == [224, 224, 192]
    assert "Not counted" in plate.caption
    assert all(panel.alt.endswith(("of photo", "in photo")) for panel in plate.panels)


def test_percentages_leave_out_what_the_truth_leaves_open(tmp_path: Path) -> None:
    """24 x 31 pixels count. The label of the CRF misses 2 columns, that by retrieval 1; 1 of 32 columns differs."""
    plate = exhibit(shown(tmp_path / "run"), 0)
    assert title_of(plate, "crf") == "label of the CRF, 93.5 % right"  # 29 / 31
    assert title_of(plate, "retrieved") == "label by retrieval, 96.8 % right"  # 30 / 31
    assert title_of(plate, "prediction") == "prediction, 100.0 % right"
    assert title_of(plate, "disagreement") == "labels disagree on 3.1 %"  # 1 / 32


def test_one_wrong_pixel_is_not_rounded_away(tmp_path: Path) -> None:
    truth = np.zeros((100, 100), np.uint8)
    crf = truth.copy()
    crf[0, 0] = 1
    plate = exhibit(shown(tmp_path / "run", size=(100, 100), truth=truth, crf=crf, retrieved=truth), 0)
    assert title_of(plate, "crf") == "label of the CRF, more than 99.9 % right"
    assert title_of(plate, "disagreement") == "labels disagree on less than 0.1 %"


def test_disagreeing_pixels_have_the_color_of_the_confidence_and_others_the_photo(tmp_path: Path) -> None:
    plate = exhibit(shown(tmp_path / "run"), 0)
    values = drawn(plate, "disagreement")
    assert values[0, 1] == pytest.approx([0.369, 0.789, 0.383], abs=0.01)  # viridis at 0.75
    assert values[0, 0] == pytest.approx(np.full(3, 1 - 0.25 * 127 / 255))  # both labels miss it
    assert axes_of(plate, "disagreement").figure.axes[1].get_xlabel() == "confidence in the label of the CRF"
    assert "near 0 it is nearly ignored" in plate.caption
    plain = exhibit(shown(tmp_path / "plain", confidence=None), 0)
    assert drawn(plain, "disagreement")[0, 1].tolist() == [0xE6, 0, 0x7E]
    assert len(axes_of(plain, "disagreement").figure.axes) == 1
    assert "sigma" not in plain.caption


def test_boxes_are_where_they_are_in_the_color_of_their_class_with_its_name(tmp_path: Path) -> None:
    """x0, y0, x1, y1 with ends exclusive: the edge lies between pixels, half a pixel before x0 and after x1 - 1."""
    image = shown(tmp_path / "run", boxes=np.array([[3, 4, 10, 20]], np.int32), box_classes=np.array([2], np.int32))
    axes = axes_of(exhibit(image, 0), "boxes")
    (box,) = (patch for patch in axes.patches if patch.get_gid() == "box")
    assert isinstance(box, Rectangle)
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (2.5, 3.5, 7, 16)
    assert box.get_edgecolor() == pytest.approx((0, 128 / 255, 0, 1))
    assert [text.get_text() for text in axes.texts] == ["dog"]


def test_of_many_boxes_the_legend_names_the_colors(tmp_path: Path) -> None:
    boxes = np.array([[i, 0, i + 2, 3] for i in range(20)], np.int32)
    plate = exhibit(shown(tmp_path / "run", boxes=boxes, box_classes=np.full(20, 2, np.int32)), 0)
    assert title_of(plate, "boxes") == "photo and 20 boxes"
    assert not axes_of(plate, "boxes").texts
    assert "dog" in [text.get_text() for text in axes_of(plate, "classes").texts]


def test_what_is_not_known_is_not_drawn(tmp_path: Path) -> None:
    """Without truth there is nothing to be right about; without boxes the caption says so."""
    none = {"truth": None, "attention": None, "activation": None, "confidence": None, "prediction": None}
    empty = {"boxes": np.zeros((0, 4), np.int32), "box_classes": np.zeros(0, np.int32)}
    plate = exhibit(shown(tmp_path / "run", **none, **empty), 0)
    assert [panel.name for panel in plate.panels] == ["boxes", "crf", "retrieved", "disagreement", "classes"]
    assert title_of(plate, "crf") == "label of the CRF"
    assert title_of(plate, "boxes") == "photo, no boxes"
    assert plate.caption.startswith("The image has no boxes.")
    assert plate.title.startswith("Validation image")
    alone = exhibit(shown(tmp_path / "alone", **none, **empty, crf=None, retrieved=None), 0)
    assert [panel.name for panel in alone.panels] == ["boxes", "classes"]
    void = exhibit(shown(tmp_path / "void", truth=np.full((24, 32), 255, np.uint8)), 0)
    assert title_of(void, "crf") == "label of the CRF"


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 900), (600, 4), (1500, 2000)])
def test_tiny_and_huge_images_are_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    plate = exhibit(shown(tmp_path / "run", size=size), 0)
    write_page(tmp_path / "out", "x", [Section(title="x", plates=[plate])])
    assert (tmp_path / "out/figures/training-1-photo-boxes.png").stat().st_size > 1000
    assert all(panel.figure.get_size_inches().max() < 6 for panel in plate.panels)
    assert all(panel.figure.get_size_inches().min() > 0.4 for panel in plate.panels)
    axes = axes_of(plate, "crf")  # below the start of its title, which thus fits
    axes.figure.canvas.draw()
    assert axes.get_window_extent().x0 == pytest.approx(0.06 * axes.figure.dpi, abs=1)
    assert axes.title.get_window_extent().x1 <= axes.figure.bbox.width


@pytest.mark.parametrize("count", [1, 12, 40])
def test_the_legend_names_the_classes_that_occur_within_its_width(count: int) -> None:
    """Accents, spaces, dollars, underscores and long names, of up to 40 classes."""
    words = [
        "caf\u00e9 au lait",
        "dining table",
        "$x$ and $y$",
        "_hidden",
        "a name that is far too long for any column",
    ]
    classes = ("background", *(f"{words[i % 5]} {i}" for i in range(count)))
    truth = np.arange(count + 1, dtype=np.uint8)[None]
    nothing = {"boxes": np.zeros((0, 4)), "box_classes": np.zeros(0, np.int64)}
    image = SegmentedImage(name="a", step=1, use="training", classes=classes, truth=truth,
                           image=np.zeros((1, count + 1, 3), np.uint8), **nothing)  # fmt: skip
    figure = color_legend([image], width=2.45)
    texts = figure.axes[0].texts
    assert len(texts) == count + 2
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in texts]
    assert max(box.x1 for box in boxes) <= figure.bbox.width
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert figure.get_size_inches()[1] < 5


def test_long_names_keep_both_ends() -> None:
    assert cut("abcdefghijklmnopqrst", 12) == "abcdef...rst"
    assert cut("short", 12) == "short"


def test_a_class_number_without_a_name_is_named_by_it(tmp_path: Path) -> None:
    truth = np.full((24, 32), 7, np.uint8)
    plate = exhibit(shown(tmp_path / "run", truth=truth), 0)
    assert "class 7" in [text.get_text() for text in axes_of(plate, "classes").texts]


def test_what_runs_share_is_drawn_once_and_what_differs_with_the_names_of_runs(tmp_path: Path) -> None:
    images = {f"{LAST}/photo.npz": segmented_image(confidence=None)}
    worse = {f"{LAST}/photo.npz": segmented_image(confidence=None, prediction=np.zeros((24, 32), np.uint8))}
    runs = [
        read(write_segmentation_run(tmp_path / "good", images=images)),
        read(write_segmentation_run(tmp_path / "bad", images=worse, labels="other/labels/step_000040")),
    ]
    (image,), notes = choose_exhibits(runs)
    plate = exhibit(image, 0)
    shared = [name for name in PANELS if name not in ("prediction", "classes")]
    assert [panel.name for panel in plate.panels] == [*shared, "prediction-1", "prediction-2", "classes"]
    assert title_of(plate, "prediction-2") == "bad\nprediction, 48.4 % right"  # 15 of 31 columns are background
    assert not notes


def test_prefixes_of_files_say_what_an_image_is_for(tmp_path: Path) -> None:
    """A segmentation run's training images, a classifier's validation images, and labels of its training images."""
    seen: dict[str, Any] = {"confidence": None, "prediction": None}
    run = write_segmentation_run(
        tmp_path / "segmentation",
        images={
            f"{LAST}/training-a.npz": segmented_image(prediction=None),
            f"{LAST}/b.npz": segmented_image(confidence=None, crf=None, retrieved=None),
        },
    )
    assert {(image.name, image.use) for image in read(run).segmented} == {("a", "training"), ("b", "validation")}
    boxes = write_box_run(tmp_path / "boxes", images={f"{LAST}/labels-c.npz": segmented_image(**seen)})
    write_labels(boxes, shown={"d": segmented_image(**seen)}, step=30)
    found = read(boxes).segmented
    assert {(image.name, image.use, image.step) for image in found} == {("c", "validation", 40), ("d", "training", 30)}
    exhibits, _ = choose_exhibits([read(boxes)])
    assert [image.first.use for image in exhibits] == ["validation", "training"]


def test_files_of_both_kinds_are_told_apart_by_their_content(tmp_path: Path) -> None:
    images = {f"{LAST}/photo.npz": segmented_image(), f"{LAST}/depth.npz": filtered_image()}
    for write in (write_segmentation_run, write_filter_run):
        found = read(write(tmp_path / write.__name__, images=images))
        assert [image.name for image in found.segmented] == ["photo"]
        assert [image.name for image in found.images] == ["depth"]
        assert not found.notes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"crf": np.zeros((5, 4), np.uint8)}, "crf has shape (5, 4), which does not fit image (H is 24)"),
        ({"attention": np.zeros((24, 32, 1))}, "attention has shape (24, 32, 1), not 2 axes"),
        ({"truth": np.zeros((24, 32))}, "truth holds float64, not whole numbers"),
        ({"truth": np.zeros((24, 32), np.int64)}, "a label does not hold bytes"),
        ({"image": np.zeros((24, 32, 3))}, "image holds float64, not whole numbers"),
        ({"image": np.zeros((0, 0, 3), np.uint8), **dict.fromkeys([*PANELS[1:8], "confidence"])},
         "not the bytes of a photo"),
        ({"boxes": np.zeros((2, 4), np.int32)}, "(K is 2)"),
        ({"box_classes": np.array([-1])}, "a box has no class"),
        ({"classes": np.arange(3)}, "classes holds int64, not words"),
        ({"image": None}, "image"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_belong_together_are_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    run = write_segmentation_run(tmp_path / "run")
    (run / "images" / LAST).mkdir(parents=True)
    np.savez(run / f"images/{LAST}/x.npz", **segmented_image(**changes))
    found = read(run)
    assert not found.segmented
    assert reason in found.notes[0]
    assert found.absence


def test_broken_files_are_notes_and_the_others_are_shown(tmp_path: Path) -> None:
    run = write_box_run(tmp_path / "run", images={f"{LAST}/labels-a.npz": segmented_image(confidence=None)})
    whole = (run / f"images/{LAST}/labels-a.npz").read_bytes()
    (run / f"images/{LAST}/half.npz").write_bytes(whole[: len(whole) // 2])
    folder = write_labels(run, shown={"b": segmented_image()})
    (folder / "shown/half.npz").write_bytes(b"PK\x03\x04")
    found = read(run)
    assert [image.name for image in found.segmented] == ["a", "b"]
    assert [note.split(" cannot be read")[0] for note in found.notes] == [
        f"images/{LAST}/half.npz", "labels/step_000040/shown/half.npz"
    ]  # fmt: skip
    for at in range(0, len(whole), 97):  # no flipped byte ends the report
        (run / f"images/{LAST}/half.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        read(run)


def test_names_of_classes_are_read_from_images(tmp_path: Path) -> None:
    run = write_segmentation_run(tmp_path / "run", images={f"{LAST}/a.npz": segmented_image()})
    assert saved_classes(read_run(run)) == CLASSES
    assert saved_classes(read_run(write_segmentation_run(tmp_path / "none"))) == ()


def test_the_section_is_there_for_both_tasks_and_absent_images_are_named(tmp_path: Path) -> None:
    run = read_run(write_segmentation_run(tmp_path / "run", images={f"{LAST}/a.npz": segmented_image()}))
    (section,) = (part for part in report_sections([run]) if part.title == "Images")
    assert [plate.name for plate in section.plates] == ["training-1-a"]
    none = read_run(write_box_run(tmp_path / "none"))
    (section,) = (part for part in report_sections([none]) if part.title == "Validation images")
    assert section.plates[0].missing == [f"none: no images in {none.folder} yet"]


def test_what_the_tasks_write_is_what_the_report_reads(tmp_path: Path) -> None:
    run = write_segmentation_run(tmp_path / "run")
    arrays = segmented_image()
    sample = Annotated("a b", *(arrays[name] for name in ("image", "boxes", "box_classes", "truth")))
    labels, gallery = PseudoLabels(arrays["crf"], arrays["retrieved"]), RunGallery(run / "images" / LAST, [], 40)
    kept = {name: arrays[name] for name in ("attention", "activation")}
    show_training(sample, labels, torch.full((24, 32), 0.75), kept, CLASSES, gallery)
    show_prediction(sample, torch.from_numpy(arrays["prediction"]), CLASSES, gallery)
    found = read(run)
    assert not found.notes
    validation, training = found.segmented
    assert (validation.name, validation.use, training.name, training.use) == ("a-b", "validation", "a-b", "training")
    assert validation.prediction is not None
    assert all(np.array_equal(getattr(training, name), arrays[name]) for name in (*PANELS[:6], "image", "confidence"))


def test_panels_are_explained_once(tmp_path: Path) -> None:
    images = {f"{LAST}/training-{name}.npz": segmented_image(prediction=None) for name in "abc"}
    run = read_run(write_segmentation_run(tmp_path / "run", images=images))
    (section,) = (part for part in report_sections([run]) if part.title == "Images")
    first, *others = [plate.caption for plate in section.plates]
    assert first.startswith("Boxes are all that is given of a training image")
    assert others == ["Panels as explained below Training image a, step 40."] * 2
