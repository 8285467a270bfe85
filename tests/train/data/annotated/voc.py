"""A small folder in the layout of PASCAL VOC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def xml(*boxes: tuple[str, object, object, object, object]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in boxes
    )
    return f"<annotation><size><width>40</width></size>{objects}</annotation>"


def write_voc(root: Path, masks: Sequence[str] = ("a",)) -> Path:
    """Write two images of 30 x 40 pixels, a and b, with boxes of cats and dogs; returns the folder."""
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for name, boxes in (("a", [("dog", 1, 1, 10, 20), ("cat", 5.4, 6.5, 40.6, 30)]), ("b", [("dog", 3, 4, 3, 4)])):
        Image.new("RGB", (40, 30), (10, 20, 30)).save(root / f"JPEGImages/{name}.jpg")
        (root / f"Annotations/{name}.xml").write_text(xml(*boxes))
    mask = np.zeros((30, 40), np.uint8)
    mask[:5], mask[5] = 2, 255
    for name in masks:
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n\n")
    return root
