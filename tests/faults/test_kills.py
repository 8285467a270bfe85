"""A sample of the kill suite; `python -m tests.faults.kills` is the whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.kills import kill_run, table, unbroken
from tests.tiny import tiny_file

KILLS = 4  # one of each kind


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.nightly), pytest.param(3, marks=pytest.mark.slow)])
def test_kills_lose_no_checkpoint_and_no_bit(tmp_path: Path, stage: int) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown where the test fails
    path = tiny_file(tmp_path)
    unbroken(path, stage, 2)
    found = kill_run(path, name="killed", stage=stage, ranks=2, kills=KILLS, chance=random.Random(seed))
    print(table(found.kills, 1, int(found.equal)))
    assert found.equal
    for kill in found.kills:
        assert kill.newest_after >= kill.newest_before
        assert kill.resumed_at == kill.newest_after
        assert kill.left == 0
