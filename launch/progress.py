"""Progress of a run, read from its folder, and the limit on restarts without progress.

python -m launch.progress RUN       run by a SLURM job before it starts its ranks; exit code 0: continue, 1: stop
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
    """Contents of logs/starts.json: the step of the newest complete checkpoint at each start of one job."""

    job: str
    steps: list[int]


def newest_step(run_folder: Path) -> int:
    """Return the step of the newest complete checkpoint, or 0 if there is none."""
    return max(complete_steps(run_folder / CHECKPOINTS), default=0)


def note_start(run_folder: Path, *, job: str) -> str | None:
    """Record that a job is about to start its ranks; return the reason if it should not.

    Args:
        run_folder: Folder of the run.
        job: Id of the job. A requeued job keeps its id; a new submission has a new one, which resets the count.
    """
    path = run_folder / "logs" / "starts.json"
    earlier = _starts(path)
    steps = [*(earlier["steps"] if earlier["job"] == job else []), newest_step(run_folder)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"job": job, "steps": steps}) + "\n")
    temporary.replace(path)
    last = steps[-(RESTARTS_WITHOUT_PROGRESS + 1) :]
    if len(last) <= RESTARTS_WITHOUT_PROGRESS or len(set(last)) > 1:
        return None
    where = f"the newest checkpoint is still that of step {last[0]}" if last[0] else "there is no checkpoint yet"
    return (
        f"{run_folder}: {RESTARTS_WITHOUT_PROGRESS} restarts of job {job} without progress: {where}. The job stops "
        "here; the log above shows why. Save more often (checkpoint.every) or request more time, then resubmit"
    )


def _starts(path: Path) -> Starts:
    try:
        starts: Starts = json.loads(path.read_text())
        return {"job": str(starts["job"]), "steps": [int(step) for step in starts["steps"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"job": "", "steps": []}


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    run_folder = Path(arguments[0])
    why_not = note_start(run_folder, job=os.environ["SLURM_JOB_ID"])
    if why_not is not None:
        print(why_not, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
