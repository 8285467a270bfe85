"""The picture of the architecture is what its source gives, and shows the folders that exist."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "docs/figures/architecture.py"
PICTURE: dict[str, Any] = runpy.run_path(str(SOURCE))
BOXES = {box.name: box for box in PICTURE["BOXES"]}


def test_the_picture_is_what_its_source_gives() -> None:
    assert SOURCE.with_suffix(".svg").read_text() == PICTURE["svg"](), "run `python docs/figures/architecture.py`"


def test_every_arrow_points_down_from_box_to_box() -> None:
    for arrow in PICTURE["ARROWS"]:
        start, end = BOXES[arrow.start], BOXES[arrow.end]
        assert start.bottom < end.y, arrow
        assert max(start.x, end.x) < arrow.x < min(start.right, end.right), arrow


def test_the_picture_shows_every_room() -> None:
    for package in ("launch", "train", "modeling", "analysis"):
        rooms = {f"{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")}
        shown = {box.name for box in BOXES.values() if box.package == package and not box.is_frame}
        assert rooms <= shown, package
        for name in shown - {"train.export"}:
            assert (ROOT / package / name).exists(), name


def test_no_two_rooms_overlap() -> None:
    rooms = [box for box in BOXES.values() if not box.is_frame]
    for number, one in enumerate(rooms):
        for other in rooms[number + 1 :]:
            apart = one.right < other.x or other.right < one.x or one.bottom < other.y or other.bottom < one.y
            assert apart, (one.name, other.name)
