"""Quickstart (`make quickstart`): Pre-, Post- and Peri-LN at two learning rates, an export, a sample and a report.

Runs the ordinary commands in sequence and prints each one, so that you can repeat them by hand.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

from launch import ranks

CONFIG = "configs/language_model/quickstart.yaml"
SWEEP = "configs/sweeps/quickstart.yaml"
RUNS = Path("runs/quickstart")
REPORT = RUNS / "report"
EXPORTED = Path("exported/quickstart")
PROMPT = "def read_lines(path):"


def main() -> int:
    """Train, export and report; return the exit code of the first command that fails."""
    print("\n--- train three placements at two learning rates: six runs, two at a time", flush=True)
    print(f"    to follow them, in a second terminal: tail -f {RUNS}/*/logs/sweep.log", flush=True)
    code = run([sys.executable, "-m", "launch", "sweep", SWEEP])
    if code:
        return code
    print("\n--- export the better Peri-LN model, for plain transformers, and complete a prompt", flush=True)
    if EXPORTED.exists():
        print(f"{EXPORTED} exists; to export again, delete it")
    else:
        code = run([sys.executable, "-m", "train.export", str(better_peri()), str(EXPORTED), "--prompt", PROMPT])
        if code:
            return code
    print("\n--- compare the placements: loss, activations, gradients", flush=True)
    code = run([sys.executable, "-m", "analysis", "report", *map(str, run_folders()), "--out", str(REPORT)])
    if code:
        return code
    print(summary())
    return 0


def run_folders(placement: str = "*") -> list[Path]:
    """Return the run folders of a placement, or of all."""
    return sorted(RUNS.glob(f"placement-{placement}_*"))


def better_peri() -> Path:
    """Return the Peri-LN run with the lowest final validation loss."""
    return min(run_folders("peri"), key=lambda folder: final_loss(folder / "metrics.jsonl"))


def final_loss(path: Path) -> float:
    """Return the last validation loss of a metrics.jsonl; infinite if it is not finite."""
    rows: list[dict[str, float | None]] = [json.loads(line) for line in path.read_text().splitlines()]
    loss = next(row["validation_loss"] for row in reversed(rows) if "validation_loss" in row)
    return loss if loss is not None and math.isfinite(loss) else math.inf


def run(command: list[str]) -> int:
    """Print a command, run it and return its exit code."""
    print("$", ranks.shell_line(command), flush=True)
    # Ctrl-C also reaches the command, which saves a checkpoint and exits; this program waits for it.
    before = signal.signal(signal.SIGINT, _wait)
    try:
        return subprocess.Popen(command, preexec_fn=ranks.end_with_parent).wait()
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(number: int, frame: object) -> None:
    """Do nothing. SIG_IGN would be inherited by the command; a handler is not."""


def summary() -> str:
    """Return the paths to look at next, and a command to try."""
    return "\n".join(
        [
            "",
            f"report          {REPORT}/index.html  (opens in any browser)",
            f"curves          {Path(sys.executable).parent / 'tensorboard'} --logdir {RUNS}",
            f"metrics         {RUNS}/*/metrics.jsonl",
            f"exported model  {EXPORTED}  (AutoModelForCausalLM.from_pretrained, no remote code)",
            "next step       change a setting: python -m train " + CONFIG + " name=mine optim.lr=1e-3",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
