"""SIGKILL for random ranks at random moments: no complete checkpoint may be lost, and no bit of the losses may differ.

`python -m tests.faults.kills --kills 100` prints the table of docs/experiments.md; a test takes a sample.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.faults.processes import HANG_SECONDS, losses, rank_processes, rows, training, validations, wait_until
from tests.tiny import tiny_file

KILLS_PER_RUN = 5
# Wide enough that writing a checkpoint takes a while, small enough that a step does not.
SETTINGS = [
    "steps=240",
    "checkpoint.every=3",
    "checkpoint.keep=null",
    "evaluate_every=60",
    "task.model.hidden_size=128",
    "task.model.intermediate_size=512",
    "probes.activations_every=40",
    "probes.gradients_every=40",
]


class Kill(NamedTuple):
    """One kill and what came of it."""

    stage: int
    rank: int
    aimed_at_save: bool
    in_save: bool  # a checkpoint was left half written
    in_start: bool  # before the first step after a start
    newest_before: int  # complete checkpoint at the time of the kill; 0: none
    newest_after: int
    resumed_at: int


class KilledRun(NamedTuple):
    """A run that was killed several times and then finished."""

    kills: list[Kill]
    equal: bool  # losses and validation losses are those of the unbroken run, bit for bit


def intact_steps(checkpoints: Path) -> list[int]:
    """Steps of the complete checkpoints; every byte of every one is as its manifest says.

    Raises:
        AssertionError: One is not.
    """
    steps = []
    for folder in checkpoints.glob("step_*"):
        if folder.suffix:
            continue
        for file in json.loads((folder / "manifest.json").read_text())["files"]:
            content = (folder / file["name"]).read_bytes()
            assert len(content) == file["bytes"], folder
            assert hashlib.sha256(content).hexdigest() == file["sha256"], folder
        steps.append(int(folder.name[5:]))
    return sorted(steps)


def unbroken(path: Path, stage: int, ranks: int) -> Path:
    """Train once without a kill; returns the run's folder."""
    name = f"unbroken-{stage}"
    with training(path, [*SETTINGS, f"name={name}", f"engine.zero_stage={stage}"], ranks=ranks) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    return path.parent / "runs" / name


def kill_run(path: Path, *, name: str, stage: int, ranks: int, kills: int, chance: random.Random) -> KilledRun:
    """Kill a run so many times, let it finish, and compare it with the unbroken one."""
    run = path.parent / "runs" / name
    settings = [*SETTINGS, f"name={name}", f"engine.zero_stage={stage}"]
    done = [kill_once(path, run, settings, stage=stage, ranks=ranks, chance=chance) for _ in range(kills)]
    with training(path, settings, ranks=ranks) as process:
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, said
    resumed = [event["step"] for event in rows(run, "events") if event["event"] == "resume"]
    done = [kill._replace(resumed_at=_resumed_at(kill, resumed)) for kill in done]
    reference = path.parent / "runs" / f"unbroken-{stage}"
    equal = losses(run) == losses(reference) and validations(run) == validations(reference)
    return KilledRun(done, equal)


def _resumed_at(kill: Kill, resumed: list[int]) -> int:
    """The run went on from what was complete after the kill, if anything was."""
    return kill.newest_after if kill.newest_after in resumed else 0


def kill_once(path: Path, run: Path, settings: list[str], *, stage: int, ranks: int, chance: random.Random) -> Kill:
    """Start the run, kill one rank at a random moment, wait for the others to end, look at what is left."""
    checkpoints = run / "checkpoints"
    in_start, aimed = chance.random() < 0.1, chance.random() < 0.5
    before = len(losses(run)), len(rows(run, "events"))
    with training(path, settings, ranks=ranks) as process:
        pids = wait_until(lambda: (found := rank_processes(process.pid)) and len(found) == ranks and found)
        if in_start:
            time.sleep(chance.uniform(0.0, 6.0))
        else:
            wait_until(lambda: len(rows(run, "events")) > before[1] and rows(run)[-1:] and _is_training(run, process))
            time.sleep(chance.uniform(0.0, 1.5))
            if aimed:
                wait_until(lambda: list(checkpoints.glob("*.partial")) or process.poll() is not None, pause=0.0005)
                time.sleep(chance.uniform(0.0, 0.02))
        complete = [int(folder.name[5:]) for folder in checkpoints.glob("step_*") if not folder.suffix]
        rank = chance.randrange(ranks)
        os.kill(pids[rank], signal.SIGKILL)
        _, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1, said
    steps = intact_steps(checkpoints)
    assert set(complete) <= set(steps), (complete, steps)
    return Kill(
        stage=stage,
        rank=rank,
        aimed_at_save=aimed and not in_start,
        in_save=bool(list(checkpoints.glob("*.partial"))),
        in_start=in_start,
        newest_before=max(complete, default=0),
        newest_after=max(steps, default=0),
        resumed_at=0,
    )


def _is_training(run: Path, process: object) -> bool:
    """Whether the last event is a start, a resume or later: the first step after it has been logged."""
    events = rows(run, "events")
    began = max(index for index, event in enumerate(events) if event["event"] in ("start", "resume"))
    return rows(run)[-1]["step"] > events[began]["step"]


def table(kills: list[Kill], runs: int, equal: int) -> str:
    """Return what happened, as Markdown."""
    lines = [
        "| ZeRO stage | kills | inside a save | before the first step | resumed above step 0 | checkpoints lost |",
        "|---|---|---|---|---|---|",
    ]
    for stage in sorted({kill.stage for kill in kills}):
        of = [kill for kill in kills if kill.stage == stage]
        counts = (
            len(of),
            sum(kill.in_save for kill in of),
            sum(kill.in_start for kill in of),
            sum(kill.resumed_at > 0 for kill in of),
            sum(kill.newest_after < kill.newest_before for kill in of),
        )
        lines.append(f"| {stage} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join([*lines, "", f"{equal} of {runs} runs ended with the losses of the unbroken run, bit for bit."])


def main() -> int:
    """Kill as often as asked, over ZeRO 1 and 3 in turn, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    chance = random.Random(given.seed)
    kills: list[Kill] = []
    equal = runs = 0
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_file(Path(folder))
        for stage in (1, 3):
            unbroken(path, stage, given.ranks)
        while len(kills) < given.kills:
            runs, stage = runs + 1, (1, 3)[runs % 2]
            count = min(KILLS_PER_RUN, given.kills - len(kills))
            found = kill_run(path, name=f"run-{runs}", stage=stage, ranks=given.ranks, kills=count, chance=chance)
            kills += found.kills
            equal += found.equal
            print(f"run {runs}: {found}", flush=True)
    print(table(kills, runs, equal))
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main())
