"""Summary of labels, printed at the end of the command: their quality in words and a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Ways to make labels, in the order of the table.
_WAYS = {
    "filled_boxes": "filled boxes",
    "grabcut": "GrabCut in each box",
    "unary": "the network's scores, before the CRF",
    "crf": "labels of the CRF",
    "retrieved": "retrieved labels",
    "agreeing": "pixels on which both agree, alone",
}
_MOST_VANISHED = 5  # that are named


def lines(folder: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the quality of labels, line by line.

    Args:
        folder: The folder of the labels.
        facts: The contents of its labels.json.
    """
    yield f"{len(facts['images'])} images labeled in {folder}, {facts['seconds_per_image']:.2f} s each"
    quality = facts["quality"]
    if quality is None:
        yield "  no truth is known, so their quality is not"
    else:
        yield f"  mean IoU over classes, {quality['images']} images with truth, all classes at once:"
        for way, name in _WAYS.items():
            if way in quality["miou"]:
                yield f"    {name:40} {quality['miou'][way]:.3f}"
    yield f"  both labels agree on {facts['agreement']:.1%} of the pixels"
    shares = ", ".join(f"{name} {share:.1%}" for name, share in facts["class_shares"]["crf"].items())
    yield f"  pixels by class: {shares}"
    yield from _vanished(facts["vanished"])


def _vanished(boxes: list[Mapping[str, Any]]) -> Iterator[str]:
    if not boxes:
        return
    reasons = ", ".join(f"{count} {why}" for why, count in Counter(box["why"] for box in boxes).items())
    yield f"  {len(boxes)} boxes got no pixel of their class and were filled ({reasons}):"
    for box in boxes[:_MOST_VANISHED]:
        yield f"    {box['image']}, box {box['box'] + 1}, {box['class']}: {box['why']}"
    if len(boxes) > _MOST_VANISHED:
        yield f"    ... and {len(boxes) - _MOST_VANISHED} more, in labels.json"
