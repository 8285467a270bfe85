"""Folders in the layout of PASCAL VOC, as they come and as they are broken."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.data.annotated.voc import write_voc, xml
from train.config.errors import ConfigError
from train.data.annotated.voc_folder import VocFolder, open_voc

KEY = "task.data.sources.0"
MSRC = Path(__file__).parents[5] / "shared/data/vision/msrc_voc"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of 30 x 40 pixels, the second without a mask."""
    return write_voc(tmp_path / "VOC")


def opened(root: Path, name: str = "train", classes: list[str] | None = None) -> VocFolder:
    return open_voc(str(root), name, classes, key=KEY)


def message(root: Path, name: str = "train", classes: list[str] | None = None, *, read: int | None = None) -> str:
    def attempt() -> None:
        found = opened(root, name, classes)
        if read is not None:
            found.read(read)

    with pytest.raises(ConfigError) as caught:
        attempt()
    return "\n".join(caught.value.faults)


def test_boxes_become_zero_based_and_exclusive_and_are_cut_at_the_edges(folder: Path) -> None:
    source = opened(folder)
    first, second = source.read(0), source.read(1)
    assert source.classes == ["background", "cat", "dog"]
    assert first.boxes.tolist() == [[0, 0, 10, 20], [4, 5, 40, 30]]
    assert first.classes.tolist() == [2, 1]
    assert second.boxes.tolist() == [[2, 3, 3, 4]]
    assert source.size(0) == first.image.shape[:2] == (30, 40)
    assert first.mask is not None
    assert np.unique(first.mask).tolist() == [0, 2, 255]
    assert second.mask is None
    assert [source.has_mask(index) for index in range(2)] == [True, False]


def test_classes_may_be_given_or_listed(folder: Path) -> None:
    assert opened(folder, classes=["dog", "cat"]).read(0).classes.tolist() == [1, 2]
    (folder / "classes.txt").write_text("background\ndog\nbird\ncat\n")
    assert opened(folder).read(0).classes.tolist() == [1, 3]


def test_lists_with_paths_of_images_and_masks_are_read(folder: Path) -> None:
    (folder / "SegmentationClassAug").mkdir()
    Image.new("L", (40, 30), 1).save(folder / "SegmentationClassAug/b.png")
    (folder / "mine.txt").write_text("/JPEGImages/b.jpg /SegmentationClassAug/b.png\n")
    source = opened(folder, str(folder / "mine.txt"))
    mask = source.read(0).mask
    assert source.names == ["b"]
    assert mask is not None
    assert mask.min() == 1


def test_the_orientation_of_exif_is_applied(folder: Path) -> None:
    image = Image.new("RGB", (30, 40))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(folder / "JPEGImages/b.jpg", exif=exif)
    source = opened(folder)
    assert source.size(1) == source.read(1).image.shape[:2] == (30, 40)


def test_a_change_of_any_file_changes_the_hash(folder: Path) -> None:
    def digest() -> str:
        found, source = hashlib.blake2b(), opened(folder)
        for index in range(2):
            source.update(found, index, with_mask=True)
        return found.hexdigest()

    before = digest()
    assert digest() == before
    (folder / "Annotations/b.xml").write_text(xml(("dog", 3, 4, 5, 6)))
    assert digest() != before


def test_a_missing_list_is_named_with_those_that_exist(folder: Path) -> None:
    said = message(folder, "train_aug")
    assert f"{KEY}.list: {folder} has no list train_aug (the 10,582 names of train_aug come with SBD" in said
    assert "it has train" in said


def test_all_missing_files_are_named_at_once(folder: Path) -> None:
    (folder / "Annotations/a.xml").unlink()
    (folder / "JPEGImages/b.jpg").unlink()
    said = message(folder).splitlines()
    assert len(said) == 2
    assert "Annotations/a.xml does not exist: the boxes of a" in said[0]
    assert "JPEGImages/b.jpg does not exist" in said[1]


def test_a_folder_too_high_or_without_images_is_named_with_what_may_be_meant(folder: Path) -> None:
    assert f"did you mean {folder}?" in message(folder.parent)
    assert "give the folder that holds JPEGImages" in message(folder / "ImageSets")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation", "cannot be read as boxes"),
        (xml(("dgo", 1, 1, 5, 5)), "'dgo' is none of the classes cat, dog; did you mean dog?"),
        (xml(("dog", 30, 1, 20, 5)), "the box 30, 1, 20, 5 of dog is empty in an image of 40 x 30 pixels"),
        (xml(("dog", 50, 1, 60, 5)), "is empty"),
        (xml(("dog", "x", 1, 60, 5)), "cannot be read as boxes"),
        ("<a><object><name>dog</name></object></a>", "object 1 lacks a side of its bndbox"),
        ("<a><object><bndbox/></object></a>", "object 1 lacks a name"),
    ],
)
def test_boxes_that_are_none_are_refused_by_file(folder: Path, text: str, said: str) -> None:
    (folder / "Annotations/b.xml").write_text(text)
    found = message(folder, classes=["cat", "dog"], read=1)
    assert found.startswith(str(folder / "Annotations/b.xml"))
    assert said in found


def test_masks_that_are_none_are_refused_by_file(folder: Path) -> None:
    path = folder / "SegmentationClass/a.png"
    Image.new("L", (40, 30), 7).save(path)
    assert "class number 7, but there are 3 classes" in message(folder, read=0)
    Image.new("RGB", (40, 30)).save(path)
    assert "RGB of 40 x 30 pixels; give a palette or gray image" in message(folder, read=0)
    Image.new("L", (30, 40)).save(path)
    assert "30 x 40 pixels; give" in message(folder, read=0)
    path.write_bytes(b"no image")
    assert f"{path}: cannot be read as an image" in message(folder, read=0)


@pytest.mark.skipif(not MSRC.is_dir(), reason="the optional data folder is absent")
def test_real_photos_are_read_and_boxes_hold_their_objects() -> None:
    source = opened(MSRC, "val")
    assert len(source.names) == 148
    for index in range(0, 148, 10):
        sample = source.read(index)
        assert sample.mask is not None
        inside = np.zeros(sample.mask.shape, bool)
        for (x0, y0, x1, y1), number in zip(sample.boxes, sample.classes, strict=True):
            inside[y0:y1, x0:x1] = True
            assert (sample.mask[y0:y1, x0:x1] == number).any()
        assert np.isin(sample.mask[~inside], (0, 255)).all()
