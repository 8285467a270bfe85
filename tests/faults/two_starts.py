"""Two starts of one run, 0 to 5 seconds apart, by any launchers: one trains, the other is refused and names the first.

`python -m tests.faults.two_starts --pairs 20` prints a table; a test takes two.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.faults.processes import HANG_SECONDS, ROOT, rows, validations
from tests.tiny import tiny_file

LAUNCHERS = {
    "python -m train": ["-m", "train"],
    "launch local, 1 rank": ["-m", "launch", "local", "--ranks", "1"],
    "launch local, 2 ranks": ["-m", "launch", "local", "--ranks", "2"],
    "torchrun, 2 ranks": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"],
}
STEPS = 500  # so many that the first start still trains when the second one arrives
SETTINGS = [f"steps={STEPS}", "checkpoint.every=50", "checkpoint.keep=1", "evaluate_every=250", "log_every=1"]
SETTINGS += ["probes.activations_every=null", "probes.gradients_every=null", "engine.threads=1"]


class Pair(NamedTuple):
    """How two starts of one run ended."""

    first: str
    second: str
    seconds_apart: float
    codes: tuple[int, int]
    refusal: str  # the last line of the one that did not train


def start_twice(path: Path, *, name: str, first: str, second: str, seconds_apart: float) -> Pair:
    """Start a run, start it again, wait for both, and compare the run's rows with what one start writes.

    Raises:
        AssertionError: Not exactly one of them trained, or a row is there twice or not at all.
    """
    starts = [_start(path, first, name)]
    time.sleep(seconds_apart)
    starts.append(_start(path, second, name))
    said = [start.communicate(timeout=HANG_SECONDS)[0] for start in starts]
    codes = (starts[0].returncode, starts[1].returncode)
    refused = 1 if codes[0] == 0 else 0
    # torchrun returns 1 for any code of its ranks
    assert codes[1 - refused] == 0, (codes, said)
    assert codes[refused] == 2 or ("torchrun" in (first, second)[refused] and codes[refused] == 1), (codes, said)
    line = next((line for line in said[refused].splitlines() if "has been training this run since" in line), "")
    assert line, said[refused]
    run = path.parent / "runs" / name
    steps = [row["step"] for row in rows(run) if "loss" in row]
    assert steps == list(range(1, STEPS + 1)), steps
    assert list(validations(run)) == [250, 500]
    events = [event["event"] for event in rows(run, "events")]
    assert (events[0], events[-1]) == ("start", "finish")
    assert "resume" not in events
    assert not (run / "lock").exists()
    return Pair(first, second, seconds_apart, codes, line)


def _start(path: Path, launcher: str, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, *LAUNCHERS[launcher], str(path), *SETTINGS, f"name={name}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def main() -> int:
    """Start as many pairs as asked, by launchers drawn at random, and print what came of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.two_starts")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    print("| first | second | s apart | exit codes |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_file(Path(folder))
        for number in range(options.pairs):
            first, second = chance.choice(list(LAUNCHERS)), chance.choice(list(LAUNCHERS))
            apart = 0.0 if number % 4 == 0 else round(chance.uniform(0, 5), 1)
            pair = start_twice(path, name=f"run-{number}", first=first, second=second, seconds_apart=apart)
            print(f"| {pair.first} | {pair.second} | {apart} | {pair.codes[0]}, {pair.codes[1]} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
