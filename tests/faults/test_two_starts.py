"""Two of the pairs of `python -m tests.faults.two_starts`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.two_starts import start_twice
from tests.tiny import tiny_file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "seconds_apart"),
    [("python -m train", "python -m train", 0.0), ("launch local, 2 ranks", "torchrun, 2 ranks", 3.0)],
)
def test_one_of_two_starts_trains(tmp_path: Path, first: str, second: str, seconds_apart: float) -> None:
    start_twice(tiny_file(tmp_path), name="twice", first=first, second=second, seconds_apart=seconds_apart)
