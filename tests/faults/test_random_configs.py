"""A dozen of the configurations of `python -m tests.faults.random_configs`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.processes import ROOT


@pytest.mark.slow
def test_what_passes_the_check_trains() -> None:
    """In a process of its own, as its runs share one process group."""
    command = [sys.executable, "-m", "tests.faults.random_configs", "--count", "12", "--second-stages", "4"]
    done = subprocess.run([*command, "--seed", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 trained, 4 of them at a second stage," in done.stdout
