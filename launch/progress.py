"""How far a run has come, read from its folder; and the end of one that is restarted again and again without progress.

python -m launch.progress RUN       what a SLURM job asks before it starts its ranks: exit code 0 go on, 1 stop
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from train.config.facts.run_layout import CHECKPOINTS, complete_steps

RESTARTS_WITHOUT_PROGRESS = 3


class Starts(TypedDict):
    """What logs/starts.json notes: the newest complete checkpoint at every start of one job."""

    job: str
    steps: list[int]


def newest_step(run_folder: Path) -> int:
    """Return the step of the newest published checkpoint; 0 where there is none."""
    return max(complete_steps(run_folder / CHECKPOINTS), default=0)


def note_start(run_folder: Path, *, job: str) -> str | None:
    """Note that a job starts its ranks; returns why it had better not.

    Args:
        run_folder: The run.
        job: The same at every restart of the job, another one when a person submits anew: then the count begins anew.
    """
    path = run_folder / "logs" / "starts.json"
    before = _starts(path)
    steps = [*(before["steps"] if before["job"] == job else []), newest_step(run_folder)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"job": job, "steps": steps}) + "\n")
    temporary.replace(path)
    last = steps[-(RESTARTS_WITHOUT_PROGRESS + 1) :]
    if len(last) <= RESTARTS_WITHOUT_PROGRESS or len(set(last)) > 1:
        return None
    where = f"the newest checkpoint is still that of step {last[0]}" if last[0] else "there is no checkpoint yet"
    return (
        f"{run_folder}: {RESTARTS_WITHOUT_PROGRESS} restarts of job {job} without progress: {where}. It stops itself; "
        "see the log above for why. Save more often (checkpoint.every), ask for more time, then submit again"
    )


def _starts(path: Path) -> Starts:
    try:
        found: Starts = json.loads(path.read_text())
        return {"job": str(found["job"]), "steps": [int(step) for step in found["steps"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"job": "", "steps": []}


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    run_folder = Path(arguments[0])
    why_not = note_start(run_folder, job=os.environ["SLURM_JOB_ID"])
    if why_not is not None:
        print(why_not, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
