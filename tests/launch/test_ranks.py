"""Exit codes of the launcher, and its use of the note that a stopped run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import ranks
from tests.faults.processes import HANG_SECONDS

ROOT = Path(__file__).parents[2]
EXITS = "import os, signal, sys; os.kill(os.getpid(), -code) if (code := int(sys.argv[1])) < 0 else sys.exit(code)"


def note(run: Path, step: int) -> None:
    """Say in a run folder that the run stopped early."""
    (run / "stopped.json").write_text(json.dumps({"exit_code": 75, "step": step, "signal": "SIGTERM"}))


@pytest.mark.parametrize(
    ("ends", "noted", "code"),
    [
        (0, None, 0),
        (2, None, 2),
        (1, None, 1),
        (75, None, 75),
        (-9, None, 1),
        (143, None, 1),
        (143, 0, 75),  # torchrun was ended from outside: only the run can tell
        (143, 7, 75),
        (-15, 7, 75),
        (1, 7, 75),  # saved, and failed on the way out
        (2, 0, 2),  # one rank refused; torchrun ended the other in preparation
        (1, 0, 1),
    ],
)
def test_the_exit_code_is_that_of_the_ranks(tmp_path: Path, ends: int, noted: int | None, code: int) -> None:
    if noted is not None:
        note(tmp_path, noted)
    assert ranks.run([sys.executable, "-c", EXITS, str(ends)], run_folder=tmp_path) == code
    if code not in (0, 75) and ends < 128:
        assert not (tmp_path / "stopped.json").exists()  # a batch script would believe it


def test_a_note_of_an_earlier_start_is_not_believed(tmp_path: Path) -> None:
    note(tmp_path, 7)
    old = time.time() - 60
    os.utime(tmp_path / "stopped.json", (old, old))
    assert ranks.run([sys.executable, "-c", EXITS, "1"], run_folder=tmp_path) == 1


def test_a_run_that_was_killed_is_said_to_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ranks.run([sys.executable, "-c", EXITS, "-9"], run_folder=tmp_path) == 1
    assert capfd.readouterr().err == "the run was killed by SIGKILL\n"


def test_a_signal_that_comes_before_there_are_ranks_is_not_lost(tmp_path: Path) -> None:
    # a torchrun that is still importing torch: it has no children, and dies of SIGTERM
    starting = "print('up', flush=True); import time; time.sleep(60)"
    program = (
        "import sys; from pathlib import Path; from launch import ranks; "
        f"command = [sys.executable, '-c', {starting!r}, 'train.ranks.torchrun']; "
        f"sys.exit(ranks.run(command, run_folder=Path({str(tmp_path)!r})))"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "up\n"
    launcher.terminate()
    _, said = launcher.communicate(timeout=HANG_SECONDS)
    assert launcher.returncode == ranks.STOPPED_EARLY
    assert "nothing is lost" in said
