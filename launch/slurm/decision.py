"""Whether a restart can mend what ended a job; docs/decisions/0008-slurm.md has the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launch.progress import Ending
from launch.slurm.evidence import Evidence
from train.config.facts.exit_codes import REFUSED, STOPPED_EARLY


class Decision(NamedTuple):
    """Whether to queue a job again: `ending` is None if not; `reason` goes to the log."""

    ending: Ending | None
    reason: str
    is_of_its_own: bool = False  # the run ended itself, as far as the evidence goes


def decide(evidence: Evidence, lost_nodes: Sequence[str] = (), *, failure: str | None = None) -> Decision:
    """Decide whether a restart can mend what ended a job.

    Args:
        evidence: What the start has left behind.
        lost_nodes: Nodes that recorded no end and no longer respond. They come before an error of a rank, which may
            have followed from the loss.
        failure: Error of a rank, for the log.
    """
    codes = {evidence.code, *(node.code for node in evidence.nodes.values())}
    if evidence.code == 0:
        return Decision(None, "")
    if REFUSED in codes:
        return Decision(None, "the run was refused: see the message above")
    if evidence.state.is_ending:
        return _ended_by_slurm(evidence)
    if _stopped_early(evidence):
        if evidence.state.is_preempted:
            return Decision("preempted", "preempted: stopped early, nothing is lost")
        return Decision("stopped early", "stopped early, nothing is lost")
    if lost_nodes:
        names = f"node {lost_nodes[0]} does" if len(lost_nodes) == 1 else f"nodes {', '.join(lost_nodes)} do"
        return Decision("node lost", f"{names} not respond")
    reason = f"the run ended itself, which a restart would only repeat: {failure or 'see above'}"
    return Decision(None, reason, is_of_its_own=True)


def _ended_by_slurm(evidence: Evidence) -> Decision:
    if evidence.state.restarts > evidence.restarts:
        return Decision(None, "SLURM itself has requeued the job")
    if evidence.state.is_preempted:
        return Decision("preempted", "preempted")
    if evidence.state.is_out_of_time:
        return Decision("time limit", "the time limit came before the run had stopped")
    return Decision(None, "the job was cancelled")


def _stopped_early(evidence: Evidence) -> bool:
    """Return whether the ranks stopped because of a signal to the job.

    When a node fails, srun terminates the others with the same signal; ranks that are still preparing then record a
    stop, and their 75 is the highest exit code. So a stop at step 0 only counts if it came before any failure. A later
    one is recorded once all ranks have saved, which they cannot without the failed one.
    """
    stop = evidence.stop
    if stop is not None and stop.step > 0:
        return True
    failures = [node.time for node in evidence.nodes.values() if node.code not in (0, STOPPED_EARLY)]
    if stop is None:
        return evidence.code == STOPPED_EARLY and not failures
    return all(stop.time < failure for failure in failures)
