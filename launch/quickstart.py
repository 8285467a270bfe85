"""`make quickstart`: the same small decoder with Pre-, Post- and Peri-LN, then a model folder, a sample and a report.

Starts the ordinary commands one after the other and prints each of them, so that they can be repeated by hand.
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
    """Train, export and report; returns the exit code of the first command that fails."""
    for placement in PLACEMENTS:
        print(f"\n--- norm placement: {placement}", flush=True)
        code = run(training_command(placement))
        if code:
            return code
    print("\n--- the Peri-LN model as a Hugging Face folder, and what it writes after a prompt", flush=True)
    if not EXPORTED.exists():
        code = run([sys.executable, "-m", "train.export", str(run_folder("peri")), str(EXPORTED), "--prompt", PROMPT])
        if code:
            return code
    print("\n--- what the placements look like inside", flush=True)
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
    """Return where a placement's run lives."""
    return RUNS / f"quickstart-{placement}"


def run(command: list[str]) -> int:
    """Show a command, run it, return its exit code."""
    print("$", ranks.shown(command), flush=True)
    # Ctrl-C reaches the command too, which saves and ends; until then this program waits.
    before = signal.signal(signal.SIGINT, _wait)
    try:
        return subprocess.Popen(command, preexec_fn=ranks.end_with_parent).wait()
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(number: int, frame: object) -> None:
    """Do nothing on a signal; to ignore it would be passed on to the command."""


def summary() -> str:
    """Return the table of the placements, and where to look next."""
    rows = [f"{'placement':>10}  {'validation loss':>15}  {'perplexity':>10}  {'bits per byte':>13}"]
    for placement in PLACEMENTS:
        last = last_validation(run_folder(placement) / "metrics.jsonl")
        figures = [last[f"validation_{name}"] for name in ("loss", "perplexity", "bits_per_byte")]
        rows.append(f"{placement:>10}  {figures[0]:15.4f}  {figures[1]:10.2f}  {figures[2]:13.4f}")
    return "\n".join(
        [
            "",
            *rows,
            "",
            f"figures         {REPORT}/index.html  (opens in any browser)",
            f"curves          {Path(sys.executable).parent / 'tensorboard'} --logdir {RUNS}",
            f"every figure    {RUNS}/quickstart-*/metrics.jsonl",
            f"exported model  {EXPORTED}  (AutoModelForCausalLM.from_pretrained, trust_remote_code=True)",
            "next            change a setting: python -m train " + CONFIG + " name=mine optim.lr=1e-3",
        ]
    )


def last_validation(path: Path) -> dict[str, float]:
    """Return the last validation row of a metrics.jsonl."""
    rows: list[dict[str, float]] = [json.loads(line) for line in path.read_text().splitlines()]
    return next(row for row in reversed(rows) if "validation_loss" in row)


if __name__ == "__main__":
    sys.exit(main())
