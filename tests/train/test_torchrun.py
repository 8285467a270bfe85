"""`train.torchrun` ends as its ranks do, and says of them only what they could not say themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def ranks(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as two ranks."""
    torchrun = [sys.executable, "-m", "train.torchrun", "--standalone", "--nproc-per-node=2", "--no-python"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun would say that it sets this
    return subprocess.run(
        [*torchrun, "sh", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("code", [0, 2, 75])
def test_ranks_that_have_said_why_end_with_their_exit_code_and_nothing_else(code: int) -> None:
    ended = ranks(f"exit {code}")
    assert ended.returncode == code
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("rank_1", "code", "said"),
    [
        ("exit 3", 3, "ended first, with exit code 3; the others"),
        ("sh -c 'kill -KILL $PPID'", 1, "ended first, killed by SIGKILL: from outside, or for want of memory"),
        ("sh -c 'kill -SEGV $PPID'", 1, "ended first, killed by SIGSEGV; the others"),
    ],
)
def test_the_rank_that_ended_first_is_named(rank_1: str, code: int, said: str) -> None:
    ended = ranks(f"if [ $RANK = 1 ]; then {rank_1}; else exec sleep 60; fi")
    assert ended.returncode == code
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("rank 1 on ")
    assert said in last
    assert "Traceback" not in ended.stderr
