"""Whether a restart can mend what ended a job; docs/decisions/0008-slurm.md has the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launch.progress import Ending
from launch.slurm.evidence import Evidence, NodeEnding
from train.config.facts.exit_codes import REFUSED, STOPPED_EARLY


class Decision(NamedTuple):
    """Whether to queue a job again: `ending` is None if not; `reason` goes to the log."""

    ending: Ending | None
    reason: str
    code: int  # exit code of the job unless it is requeued
    is_of_its_own: bool = False  # the run ended itself, as far as the evidence goes


def decide(evidence: Evidence, lost_nodes: Sequence[str] = (), *, failure: str | None = None) -> Decision:
    """Decide whether a restart can mend what ended a job.

    Args:
        evidence: What the start has left behind.
        lost_nodes: Nodes that recorded no end and no longer respond. They come before an error of a rank, which may
            have followed from the loss.
        failure: Error of a rank, for the log.
    """
    code = evidence.code
    if code == 0:
        return Decision(None, "", 0)
    if REFUSED in (code, *(node.code for node in evidence.nodes.values())):
        return Decision(None, "the run was refused: see the message above", REFUSED)
    if evidence.state.is_ending:
        return _ended_by_slurm(evidence)
    if _stopped_early(evidence):
        if evidence.state.is_preempted:
            return Decision("preempted", "preempted: stopped early, nothing is lost", code)
        return Decision("stopped early", "stopped early, nothing is lost", code)
    if lost_nodes:
        names = f"node {lost_nodes[0]} does" if len(lost_nodes) == 1 else f"nodes {', '.join(lost_nodes)} do"
        return Decision("node lost", f"{names} not respond", code)
    reason = f"the run ended itself, which a restart would only repeat: {failure or 'see above'}"
    failures = _failures(evidence)
    return Decision(None, reason, failures[0].code if failures else code, is_of_its_own=True)


def _ended_by_slurm(evidence: Evidence) -> Decision:
    if evidence.state.restarts > evidence.restarts:
        return Decision(None, "SLURM itself has requeued the job", evidence.code)
    if evidence.state.is_preempted:
        return Decision("preempted", "preempted", evidence.code)
    if evidence.state.is_out_of_time:
        return Decision("time limit", "the time limit came before the run had stopped", evidence.code)
    return Decision(None, "the job was cancelled", evidence.code)


def _failures(evidence: Evidence) -> list[NodeEnding]:
    """Return the recorded failures, the first one first: those of other nodes may have followed from it."""
    failures = [node for node in evidence.nodes.values() if node.code not in (0, STOPPED_EARLY)]
    return sorted(failures, key=lambda node: node.time)


def _stopped_early(evidence: Evidence) -> bool:
    """Return whether the ranks stopped because of a signal to the job.

    When a node fails, srun terminates the others with the same signal; ranks that are still preparing then record a
    stop, and their 75 is the highest exit code. So a stop at step 0 only counts if it came before any failure. A later
    one is recorded once all ranks have saved, which they cannot without the failed one.
    """
    stop = evidence.stop
    if stop is not None and stop.step > 0:
        return True
    failures = _failures(evidence)
    if stop is None:
        return evidence.code == STOPPED_EARLY and not failures
    return not failures or stop.time < failures[0].time
