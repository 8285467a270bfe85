"""A job as SLURM sees it, asked from inside its batch script: state, nodes and requeueing."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

_ANSWER_SECONDS = 60  # for SLURM's commands; a step on a node that is down fails after about half of that
_TRIES = 2
_RUNNING = ("RUNNING", "SIGNALING")
_AT_ONCE = 16


class JobState(NamedTuple):
    """What SLURM has decided about a job, while its batch script still runs."""

    is_ending: bool = False  # SLURM has ended the job: cancelled, preempted, out of time or requeued
    restarts: int = 0  # SLURM counts one as soon as it has requeued the job
    is_preempted: bool = False
    is_out_of_time: bool = False


def job_id(environment: Mapping[str, str]) -> str:
    """Return the id of this job, in an array that of this task alone.

    SLURM_JOB_ID of the last task of an array is that of the array: requeueing it ends and restarts the other tasks too.
    """
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def restart_count(environment: Mapping[str, str]) -> int:
    """Return how often SLURM has restarted this job, for whatever reason."""
    return int(environment.get("SLURM_RESTART_COUNT", "0"))


def start_id(environment: Mapping[str, str]) -> str:
    """Return the name of this start of the job."""
    return f"{job_id(environment)}-{restart_count(environment)}"


def job_state(job: str) -> JobState:
    """Return the state of this job; that of an undisturbed job if SLURM does not answer."""
    return parse_state(_output(["scontrol", "show", "job", "--oneliner", job]))


def parse_state(shown: str) -> JobState:
    """Parse a line of `scontrol show job`. Its JobState is COMPLETING however SLURM has ended the job."""
    values = dict(re.findall(r"(\w+)=(\S*)", shown))
    return JobState(
        is_ending=values.get("JobState", "RUNNING") not in _RUNNING,
        restarts=int(values.get("Restarts", 0)),
        is_preempted=values.get("PreemptTime", "None")[:1].isdigit(),
        is_out_of_time=values.get("Reason") == "TimeLimit",
    )


def node_names(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the job's nodes."""
    return _output(["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]]).split()


def lost_nodes(nodes: Sequence[str], *, here: str, responds: Callable[[str], bool] | None = None) -> list[str]:
    """Return the nodes that cannot start a step any more.

    SLURM itself notices a lost node only after its SlurmdTimeout, when the batch script may be long gone.

    Args:
        nodes: Names of the nodes in doubt.
        here: The node of the batch script. If not even this one responds, the question is at fault, not the nodes.
        responds: Whether a node responds; by default, asks SLURM.
    """
    ask = responds or _responds
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = {node: pool.submit(ask, node) for node in nodes if node != here}
    lost = [node for node, answer in answers.items() if not answer.result()]
    return lost if lost and ask(here) else []


def _responds(node: str) -> bool:
    """Start a step on a node.

    `--export=NONE` leaves the step no PATH, so its command is a builtin of /bin/sh; not `:`, at which srun splits its
    command line.
    """
    step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--mem=0", "/bin/sh", "-c", "true"]
    return any(_succeeds(step) for _ in range(_TRIES))


def requeue(job: str) -> bool:
    """Ask SLURM to queue this job, or this task of an array, again; return whether it will."""
    return _succeeds(["scontrol", "requeue", job])


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, timeout=_ANSWER_SECONDS, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
