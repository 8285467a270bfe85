"""The last line of `launch local` after a hang; tests/train/ranks/watchdog has the hangs themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.processes import HANG_SECONDS, training
from tests.tiny import tiny_file


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        pytest.param("fifo", "blocks the others in step 5", marks=pytest.mark.slow),
        pytest.param("kill", "died in step 5", marks=pytest.mark.nightly),
    ],
)
def test_the_last_line_names_the_culprit(tmp_path: Path, fault: str, what: str) -> None:
    path = tiny_file(tmp_path)
    deadlines = ["watchdog.step=6", "watchdog.first_step=60"]
    with training(path, deadlines, ranks=2, module="tests.train.ranks.watchdog.hanging_rank", fault=fault) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1, said
    last = said.splitlines()[-1]
    assert last == (tmp_path / "runs/tiny/stacks.txt").read_text().splitlines()[0]
    assert last.startswith("rank 1 (")
    assert what in last
