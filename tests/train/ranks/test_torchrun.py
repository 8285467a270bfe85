"""`train.ranks.torchrun` ends as its ranks do, and says of them only what they could not say themselves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def ranks(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as two ranks."""
    torchrun = [sys.executable, "-m", "train.ranks.torchrun", "--standalone", "--nproc-per-node=2", "--no-python"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun would say that it sets this
    return subprocess.run(
        [*torchrun, "sh", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("code", [75, *(pytest.param(code, marks=pytest.mark.nightly) for code in (0, 2))])
def test_ranks_that_have_said_why_end_with_their_exit_code_and_nothing_else(code: int) -> None:
    ended = ranks(f"exit {code}")
    assert ended.returncode == code
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("rank_1", "code", "said"),
    [
        ("exit 3", 3, "ended first, with exit code 3; the others"),
        ("sh -c 'kill -KILL $PPID'", 1, "ended first, killed by SIGKILL: from outside, or because memory ran out"),
        pytest.param(
            "sh -c 'kill -SEGV $PPID'", 1, "ended first, killed by SIGSEGV; the others", marks=pytest.mark.nightly
        ),
    ],
)
def test_the_rank_that_ended_first_is_named(rank_1: str, code: int, said: str) -> None:
    ended = ranks(f"if [ $RANK = 1 ]; then {rank_1}; else exec sleep 60; fi")
    assert ended.returncode == code
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("rank 1 on ")
    assert said in last
    assert "Traceback" not in ended.stderr


def leave(text: str, *, at: int) -> str:
    """Return a shell command that leaves a reason where torchrun looks for it, dated."""
    told = json.dumps({"message": {"message": text, "extraInfo": {"timestamp": str(at)}}})
    return f"printf %s {shlex.quote(told)} > $TORCHELASTIC_ERROR_FILE"


def test_a_rank_that_is_ended_because_of_another_is_not_the_cause_whatever_it_says() -> None:
    ended_for_it = (
        f"trap {shlex.quote(leave('stopped before the first step', at=1) + '; exit 75')} TERM; sleep 60 & wait"
    )
    refuses = f"sleep 1; {leave('task.data: too little text', at=int(time.time()) + 3600)}; exit 2"
    ended = ranks(f"if [ $RANK = 1 ]; then {refuses}; else {ended_for_it}; fi")
    assert ended.returncode == 2
    assert ended.stderr == "task.data: too little text\n"  # rank 0 could not say it


def test_what_rank_0_has_said_is_not_said_again() -> None:
    ended = ranks(f"{leave('task.data: too little text', at=1)}; exit 2")
    assert ended.returncode == 2
    assert ended.stderr == ""


def test_torchrun_that_is_told_to_end_says_so() -> None:
    ended = ranks("if [ $RANK = 1 ]; then kill -TERM $PPID; fi; exec sleep 60")
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr.splitlines()[-1].startswith("SIGTERM terminated the ranks on ")
    assert "Traceback" not in ended.stderr
