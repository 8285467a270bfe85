"""Checks of the part that a source takes of an infinite series of procedural images."""

from __future__ import annotations

from collections.abc import Iterator


def series_faults(
    name: str, *, start: int, stop: int | None, size: tuple[int, int], smallest: int, path: str
) -> Iterator[str]:
    """Yield the faults of a range of images and of their size.

    Args:
        name: Name of the series.
        start: First image, from 0.
        stop: End, exclusive; None if it is missing.
        size: Height and width.
        smallest: Least height and width; smaller images show nothing.
        path: Path of the source in the configuration, for messages.
    """
    if start < 0:
        yield f"{path}.start: {start} is negative, but the series is infinite; write 0 or more"
    if stop is None:
        yield f"{path}.stop: missing, but {name} is infinite; set the end, for example stop: 200"
    elif stop <= max(start, 0):
        yield f"{path}.stop: {stop} leaves no images after start {start}; write {max(start, 0) + 1} or more"
    if min(size) < smallest:
        yield f"{path}.size: {list(size)} is too small; write height and width of {smallest} or more"
