"""Quickstart (`make quickstart`): a small decoder with Pre-, Post- and Peri-LN, an export, a sample and a report.

Runs the ordinary commands in sequence and prints each one, so that you can repeat them by hand.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from launch import ranks

CONFIG = "configs/language_model/quickstart.yaml"
PLACEMENTS = ("pre", "post", "peri")
RUNS = Path("runs")
EXPORTED = Path("exported/quickstart-peri")
REPORT = Path("reports/quickstart")
PROMPT = "def read_lines(path):"


def main() -> int:
    """Train, export and report; return the exit code of the first command that fails."""
    for placement in PLACEMENTS:
        print(f"\n--- norm placement: {placement}", flush=True)
        code = run(training_command(placement))
        if code:
            return code
    print("\n--- export the Peri-LN model to a Hugging Face folder and complete a prompt", flush=True)
    if not EXPORTED.exists():
        code = run([sys.executable, "-m", "train.export", str(run_folder("peri")), str(EXPORTED), "--prompt", PROMPT])
        if code:
            return code
    print("\n--- compare the placements: activations, gradients, loss", flush=True)
    runs = [str(run_folder(placement)) for placement in PLACEMENTS]
    code = run([sys.executable, "-m", "analysis", "report", *runs, "--out", str(REPORT)])
    if code:
        return code
    print(summary())
    return 0


def training_command(placement: str) -> list[str]:
    """Return the command that trains one placement on this machine."""
    settings = [f"name={run_folder(placement).name}", f"task.model.norm_placement={placement}"]
    return [sys.executable, "-m", "launch", "local", CONFIG, *settings]


def run_folder(placement: str) -> Path:
    """Return the run folder of a placement."""
    return RUNS / f"quickstart-{placement}"


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
    """Return a table of the placements' metrics and the paths to look at next."""
    rows = [f"{'placement':>10}  {'validation loss':>15}  {'perplexity':>10}  {'bits per byte':>13}"]
    for placement in PLACEMENTS:
        last = last_validation(run_folder(placement) / "metrics.jsonl")
        metrics = [last[f"validation_{name}"] for name in ("loss", "perplexity", "bits_per_byte")]
        rows.append(f"{placement:>10}  {metrics[0]:15.4f}  {metrics[1]:10.2f}  {metrics[2]:13.4f}")
    return "\n".join(
        [
            "",
            *rows,
            "",
            f"report          {REPORT}/index.html  (opens in any browser)",
            f"curves          {Path(sys.executable).parent / 'tensorboard'} --logdir {RUNS}",
            f"metrics         {RUNS}/quickstart-*/metrics.jsonl",
            f"exported model  {EXPORTED}  (AutoModelForCausalLM.from_pretrained, trust_remote_code=True)",
            "next step       change a setting: python -m train " + CONFIG + " name=mine optim.lr=1e-3",
        ]
    )


def last_validation(path: Path) -> dict[str, float]:
    """Return the last validation row of a metrics.jsonl."""
    rows: list[dict[str, float]] = [json.loads(line) for line in path.read_text().splitlines()]
    return next(row for row in reversed(rows) if "validation_loss" in row)


if __name__ == "__main__":
    sys.exit(main())
