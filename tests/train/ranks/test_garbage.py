"""While a run trains, Python collects garbage only when the loop says so."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from train.ranks.garbage import COLLECT_EVERY, collect_when_due, no_automatic_collection


class Ring:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.me = self


def collections(work: Any) -> list[int]:
    """The generations collected while `work` runs."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            found.append(info["generation"])

    gc.callbacks.append(note)
    try:
        work()
    finally:
        gc.callbacks.remove(note)
    return found


def make_many_objects() -> None:
    kept = [[number] for number in range(200_000)]
    del kept


def test_nothing_is_collected_in_between() -> None:
    assert collections(make_many_objects)
    with no_automatic_collection():
        assert collections(make_many_objects) == []
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_garbage_is_freed_at_the_steps_that_are_due() -> None:
    with no_automatic_collection():
        garbage = weakref.ref(Ring())
        collect_when_due(COLLECT_EVERY - 1)
        assert garbage() is not None
        collect_when_due(COLLECT_EVERY)
        assert garbage() is None
