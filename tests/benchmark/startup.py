"""Seconds that commands take to answer `--help`: what a user waits for before a mistake is reported."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STARTUP_ARM = "start-up"
COMMANDS = (
    "train",
    "train.data",
    "train.evaluate",
    "train.export",
    "launch local",
    "launch slurm",
    "launch plan",
    "launch sweep",
    "analysis report",
    "analysis inspect",
)


def measure_startup() -> dict[str, float]:
    """Return the seconds of each command's `--help`, each in a process of its own."""
    seconds = {}
    for command in COMMANDS:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", *command.split(), "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds[command] = time.perf_counter() - began
    return seconds


def startup_table(rounds: list[dict[str, float]]) -> str:
    """Return the seconds as Markdown: medians over the rounds, and their range."""
    lines = ["| `--help` of `python -m` | s, median | lowest | highest |", "|---|---|---|---|"]
    for command in COMMANDS:
        seconds = [row[command] for row in rounds]
        lines.append(f"| {command} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |")
    return "\n".join(lines)
