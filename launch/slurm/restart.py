"""Start and end of a job's ranks, as seen by its batch script: `python -m launch.slurm.restart start|end RUN ...`.

`start` records the start; exit code 1 if the job must not start again. `end --code N` decides by the evidence whether
a restart can mend what ended the ranks and requeues the job if so. It returns the exit code of the job: 75 if it will
resume, else that of the node that failed first. Both run on the node of the batch script, outside of any container,
and use the standard library only.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launch.progress import Limits, last_start_time, note_ending, note_start
from launch.slurm import job as slurm
from launch.slurm.decision import Decision, decide
from launch.slurm.evidence import Evidence, first_failure, read_nodes, read_stop
from train.config.facts.exit_codes import STOPPED_EARLY
from train.config.facts.run_layout import STOPPED


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run the command; return the exit code."""
    options = _parse(arguments)
    job, limits = slurm.job_id(environment), Limits(options.restarts, options.restarts_without_progress)
    if options.when == "start":
        return start(options.run, job=job, limits=limits)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM ends the whole batch script; this takes only a moment
    return end(options.run, options.code, job=job, limits=limits, environment=environment)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.slurm.restart", description="Record a start of a job, or decide what follows its end."
    )
    parser.add_argument("when", choices=["start", "end"])
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--code", type=int, default=0, help="exit code of the ranks, as srun reports it")
    parser.add_argument("--restarts", type=int, help="limit on restarts (default: none)")
    parser.add_argument("--restarts-without-progress", type=int, help="likewise, in a row without a newer checkpoint")
    return parser.parse_args(arguments)


def start(run: Path, *, job: str, limits: Limits) -> int:
    """Record a start and forget the last early stop; return 1 if the job must not start again."""
    reason = note_start(run, job=job, limits=limits)
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    (run / STOPPED).unlink(missing_ok=True)
    return 0


def end(run: Path, code: int, *, job: str, limits: Limits, environment: Mapping[str, str]) -> int:
    """Requeue the job if a restart can mend what ended its ranks; return its exit code."""
    decision = decision_of(run, code, environment=environment)
    if decision.ending is None:
        _print(decision.reason)
        return decision.code
    exhausted = note_ending(run, job=job, ending=decision.ending, limits=limits)
    if exhausted is not None:
        _print(f"{decision.reason}; not requeued: {exhausted}")
        return decision.code
    _print(f"{decision.reason}; job {job} is requeued and will resume")
    if not slurm.requeue(job):
        _print("requeueing failed: submit the job by hand")
    return STOPPED_EARLY


def decision_of(run: Path, code: int, *, environment: Mapping[str, str]) -> Decision:
    """Collect the evidence and decide; nodes are asked only if nothing else explains why the ranks ended."""
    nodes = slurm.node_names(environment)
    evidence = Evidence(
        code=code,
        state=slurm.job_state(slurm.job_id(environment)),
        restarts=slurm.restart_count(environment),
        stop=read_stop(run),
        nodes=read_nodes(run, nodes, start=slurm.start_id(environment)),
    )
    decision = decide(evidence)
    if not decision.is_of_its_own:
        return decision
    silent = [node for node in nodes if node not in evidence.nodes]
    lost = slurm.lost_nodes(silent, here=environment.get("SLURMD_NODENAME", ""))
    # That may have taken minutes, in which SLURM has noticed by itself.
    evidence = replace(evidence, state=slurm.job_state(slurm.job_id(environment)))
    return decide(evidence, lost, failure=first_failure(run, since=last_start_time(run)))


def _print(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
