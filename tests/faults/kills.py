"""SIGKILL for ranks, torchrun, the launcher, and whatever prepares the data, at random moments.

No complete checkpoint may be lost, no bit of the losses may differ, and no process may be left. `python -m
tests.faults.kills --kills 60` prints the table of docs/experiments.md; a test takes a sample.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.faults.processes import (
    HANG_SECONDS,
    descendants,
    losses,
    parent,
    rank_processes,
    rows,
    still_there,
    training,
    validations,
    wait_until,
)
from tests.tiny import tiny_file

KILLS_PER_RUN = 4
VICTIMS = ("rank", "torchrun", "launcher", "preparation")  # preparation: one of these, while the data are prepared
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
    victim: str
    in_save: bool  # a checkpoint was left half written
    in_start: bool  # before the first step after a start
    newest_before: int  # complete checkpoint at the time of the kill; 0: none
    newest_after: int
    resumed_at: int
    left: int  # processes still there after a minute


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
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
    chance.shuffle(victims)
    done = [kill_once(path, run, settings, victim, stage=stage, ranks=ranks, chance=chance) for victim in victims]
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


def kill_once(
    path: Path, run: Path, settings: list[str], victim: str, *, stage: int, ranks: int, chance: random.Random
) -> Kill:
    """Start the run, kill one process at a random moment, wait for the others to end, look at what is left."""
    checkpoints, cache = run / "checkpoints", path.parent / f"cache-{chance.randrange(10**9)}"
    in_start = victim == "preparation" or chance.random() < 0.1
    before = len(rows(run, "events"))
    own_cache = [f"task.data.cache_dir={cache}"] if victim == "preparation" else []
    with training(path, [*settings, *own_cache], ranks=ranks) as process:
        pids = wait_until(lambda: (found := rank_processes(process.pid)) and len(found) == ranks and found)
        if victim == "preparation":
            wait_until(lambda: list(cache.glob("text-*")), pause=0.002)
            time.sleep(chance.uniform(0.0, 1.0))
        elif in_start:
            time.sleep(chance.uniform(0.0, 6.0))
        else:
            wait_until(lambda: len(rows(run, "events")) > before and rows(run)[-1:] and _is_training(run))
            _wait_for_a_moment(checkpoints, process, chance)
        complete = [int(folder.name[5:]) for folder in checkpoints.glob("step_*") if not folder.suffix]
        everyone = [process.pid, *descendants(process.pid)]
        torchrun = parent(pids[0])
        named = {"rank": chance.choice(list(pids.values())), "torchrun": torchrun, "launcher": process.pid}
        target = named.get(victim) or chance.choice(list(named.values()))
        os.kill(target, signal.SIGKILL)
        left = len(still_there(everyone))
        _, said = process.communicate(timeout=HANG_SECONDS)
    expected = {process.pid: (-signal.SIGKILL,), torchrun: (1, 75)}.get(target, (1,))
    assert process.returncode in expected, (victim, process.returncode, said)
    steps = intact_steps(checkpoints)
    assert set(complete) <= set(steps), (complete, steps)
    return Kill(
        stage=stage,
        victim=victim,
        in_save=bool(list(checkpoints.glob("*.partial"))),
        in_start=in_start,
        newest_before=max(complete, default=0),
        newest_after=max(steps, default=0),
        resumed_at=0,
        left=left,
    )


def _wait_for_a_moment(checkpoints: Path, process: subprocess.Popen[str], chance: random.Random) -> None:
    """Wait for a random moment between steps, or for one in which a checkpoint is being written."""
    time.sleep(chance.uniform(0.0, 1.5))
    if chance.random() < 0.5:
        wait_until(lambda: list(checkpoints.glob("*.partial")) or process.poll() is not None, pause=0.0005)
        time.sleep(chance.uniform(0.0, 0.02))


def _is_training(run: Path) -> bool:
    """Whether the last event is a start, a resume or later: the first step after it has been logged."""
    events = rows(run, "events")
    began = max(index for index, event in enumerate(events) if event["event"] in ("start", "resume"))
    return rows(run)[-1]["step"] > events[began]["step"]


def table(kills: list[Kill], runs: int, equal: int) -> str:
    """Return what happened, as Markdown."""
    lines = [
        "| killed | kills | inside a save | before the first step | resumed above step 0 | checkpoints lost "
        "| processes left |",
        "|---|---|---|---|---|---|---|",
    ]
    for victim in VICTIMS:
        of = [kill for kill in kills if kill.victim == victim]
        counts = (
            len(of),
            sum(kill.in_save for kill in of),
            sum(kill.in_start for kill in of),
            sum(kill.resumed_at > 0 for kill in of),
            sum(kill.newest_after < kill.newest_before for kill in of),
            sum(kill.left for kill in of),
        )
        lines.append(f"| {victim} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join([*lines, "", f"{equal} of {runs} runs ended with the losses of the unbroken run, bit for bit."])


def main() -> int:
    """Kill as often as asked, over ZeRO 1 and 3 in turn, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills")
    parser.add_argument("--kills", type=int, default=60)
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
    return 0 if equal == runs and not any(kill.left for kill in kills) else 1


if __name__ == "__main__":
    sys.exit(main())
