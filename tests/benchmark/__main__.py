"""`make bench`: speed and peak memory beside peers, in one run, alternating.

Every arm is a process of its own: of the language model it trains on the same windows of real text with the same
shapes, batch and threads; of the image filters it filters, or trains on, the same image; `preparation` tokenizes text;
`start-up` times `--help` and the first step. The rounds alternate, and what counts are ratios within a round.
`--record` appends to docs/experiments.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmark.arms import ARMS, PROBE_ARMS, Shape
from tests.benchmark.filters import FILTER_ARMS, filter_table
from tests.benchmark.preparation import PREPARATION_ARM, preparation_table
from tests.benchmark.startup import STARTUP_ARM, startup_table
from train.config.run import ProbesConfig

ROOT = Path(__file__).parents[2]
RATIOS = (
    ("ours-pre-compiled", "hand-compiled"),
    ("ours-pre-compiled", "hf-trainer"),
    ("ours-pre", "hf-trainer"),
    ("ours-pre", "hand-eager"),
    ("ours-peri-compiled", "ours-pre-compiled"),
    ("ours-peri", "ours-pre"),
)


class Measured(NamedTuple):
    """One arm in one round."""

    tokens_per_second: float
    peak_memory_gib: float


def measure(arm: str, shape: Shape, *, steps: int, threads: int, folder: Path) -> dict[str, float]:
    """Run one arm in a fresh process; returns its figures."""
    described = json.dumps({"arm": arm, "shape": shape._asdict(), "steps": steps, "folder": str(folder)})
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmark.arms", described],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{arm} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def probe_table(rounds: list[dict[str, dict[str, float]]]) -> str:
    """Return what measuring costs, as Markdown: medians over the rounds.

    What a measured step takes beyond its unmeasured neighbours, in the same process, is the cost of measuring every
    step; every N steps it is the N-th part. Steps that are not measured are compared with a run without probes.
    """
    every = ProbesConfig().activations_every
    assert every == ProbesConfig().gradients_every
    assert every is not None
    lines = [
        f"| blocks | probes | step, ms | unmeasured step / probes off | cost at every step | at the default, {every} |",
        "|---|---|---|---|---|---|",
    ]
    for blocks in dict.fromkeys(arm.partition(",")[0] for arm in rounds[0]):
        off = [r[f"{blocks}, probes off"] for r in rounds]
        on = [r[f"{blocks}, probes every second step"] for r in rounds]
        without = statistics.median((row["measured"] + row["unmeasured"]) / 2 for row in off)
        lines.append(f"| {blocks} | off | {1e3 * without:.1f} | | | |")
        extra = statistics.median(row["measured"] / row["unmeasured"] - 1 for row in on)
        still = statistics.median(
            2 * row["unmeasured"] / (plain["measured"] + plain["unmeasured"])
            for row, plain in zip(on, off, strict=True)
        )
        measured = 1e3 * statistics.median(row["measured"] for row in on)
        costs = f"{100 * extra:.1f} % | {100 * extra / every:.2f} %"
        lines.append(f"| {blocks} | on | {measured:.1f} | {still:.3f} | {costs} |")
    return "\n".join(lines)


def table(rounds: list[dict[str, Measured]]) -> str:
    """Return the figures as Markdown: medians over the rounds, and the span of each ratio."""
    lines = ["| arm | tokens/s | peak memory GiB |", "|---|---|---|"]
    for arm in rounds[0]:
        speeds = [r[arm].tokens_per_second for r in rounds]
        memory = statistics.median(r[arm].peak_memory_gib for r in rounds)
        lines.append(f"| {arm} | {statistics.median(speeds):,.0f} | {memory:.2f} |")
    lines += ["", "| ratio of tokens/s, within a round | median | lowest | highest |", "|---|---|---|---|"]
    for ours, peer in RATIOS:
        if ours in rounds[0] and peer in rounds[0]:
            ratios = [r[ours].tokens_per_second / r[peer].tokens_per_second for r in rounds]
            lines.append(
                f"| {ours} / {peer} | {statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f} |"
            )
    return "\n".join(lines)


def tables(rounds: list[dict[str, dict[str, float]]]) -> Iterator[str]:
    """Yield the tables of the arms that ran."""
    speeds = [{arm: Measured(**row[arm]) for arm in row if arm in ARMS} for row in rounds]
    if speeds[0]:
        yield table(speeds)
    probes = [{arm: row[arm] for arm in row if arm in PROBE_ARMS} for row in rounds]
    if probes[0]:
        yield probe_table(probes)
    filters = [{arm: row[arm] for arm in row if arm in FILTER_ARMS} for row in rounds]
    if filters[0]:
        yield filter_table(filters)
    if PREPARATION_ARM in rounds[0]:
        yield preparation_table([row[PREPARATION_ARM] for row in rounds])
    if STARTUP_ARM in rounds[0]:
        yield startup_table([row[STARTUP_ARM] for row in rounds])


def device_name() -> str:
    """Return what the figures were taken on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def main() -> int:
    """Run all arms and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of an arm, the first third not counted")
    known = [*ARMS, *PROBE_ARMS, *FILTER_ARMS, PREPARATION_ARM, STARTUP_ARM]
    parser.add_argument("--arms", nargs="*", choices=known, default=known, help="which to run; default: all")
    parser.add_argument("--record", action="store_true", help="append to docs/experiments.md")
    given = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    shape = Shape()
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            measured: dict[str, dict[str, float]] = {}
            # Every other round backwards, so that a slow drift of the machine favours no one.
            for arm in given.arms if number % 2 == 0 else given.arms[::-1]:
                measured[arm] = measure(arm, shape, steps=given.steps, threads=threads, folder=Path(folder))
                figures = "  ".join(f"{name} {value:,.3f}" for name, value in measured[arm].items())
                print(f"round {number + 1}  {arm:32}{figures}", flush=True)
            rounds.append({arm: measured[arm] for arm in given.arms})
    text = "\n\n".join(tables(rounds))
    print(f"\n{text}")
    if given.record:
        _record(text, shape, given, threads)
    return 0


def _record(text: str, shape: Shape, given: Any, threads: int) -> None:
    today = datetime.date.today().isoformat()
    heading = f"\n## {today}: make bench, {device_name()}\n\n"
    what = f"{shape.describe()}, fp32, {threads} threads, {given.rounds} rounds of {given.steps} steps.\n\n"
    with (ROOT / "docs/experiments.md").open("a") as file:
        file.write(heading + what + text + "\n")


if __name__ == "__main__":
    sys.exit(main())
