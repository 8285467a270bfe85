"""Verdict on a hanging run: the rank responsible, derived from the published states of the ranks alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from train.ranks.watchdog.collectives import Call
from train.ranks.watchdog.heartbeat import Answer, Heartbeat

Kind = tuple[str, str, int]  # group, name and elements of a call
# never: not started; gone: its process has ended; silent: its heartbeat has stopped; alive: still running
Condition = Literal["never", "gone", "silent", "alive"]


@dataclass(frozen=True)
class Peer:
    """The known state of one rank."""

    rank: int
    condition: Condition
    heartbeat: Heartbeat | None = None
    answer: Answer | None = None
    trace: Sequence[Call] = field(default_factory=tuple)

    def __str__(self) -> str:
        """Return the rank with its host and process."""
        if self.heartbeat is None:
            return f"rank {self.rank}"
        return f"rank {self.rank} ({self.heartbeat.host}, pid {self.heartbeat.pid})"

    @property
    def where(self) -> str:
        """The phase and step of the rank."""
        if self.heartbeat is None:
            return "no phase yet"
        phase = self.heartbeat.phase.replace("_", " ")
        at = f"step {self.heartbeat.step}"
        return at if phase == "step" else (phase if phase == "preparation" else f"{phase}, {at}")

    @property
    def last(self) -> str:
        """The last collective that the rank called."""
        return str(self.trace[-1]) if self.trace else (self.heartbeat.collective if self.heartbeat else "") or "none"


class Verdict(NamedTuple):
    """The ranks that block the run, with the evidence."""

    ranks: list[int]  # empty if no rank stands out
    text: str


def judge(peers: Sequence[Peer]) -> Verdict:
    """Determine which rank, or ranks, block the others.

    Candidates in order: ranks whose collectives do not match the others', which may also have killed some of them;
    ranks that failed with their own error; ranks that are gone, silent or never started; ranks outside a collective
    while others wait in one; ranks that have called fewer collectives.
    """
    for find in (_mismatched, _failed, _absent, _outside, _behind):
        verdict = find(peers)
        if verdict is not None:
            return verdict
    return _undecided(peers)


def _mismatched(peers: Sequence[Peer]) -> Verdict | None:
    """Find the first collective on which ranks differ; the minority is wrong, or in a tie the one without precedent."""
    traces = {peer.rank: {call.number: call for call in peer.trace} for peer in peers if peer.trace}
    numbers = sorted({number for trace in traces.values() for number in trace})
    for number in numbers:
        calls = {rank: trace[number] for rank, trace in traces.items() if number in trace}
        if len({call.kind for call in calls.values()}) > 1:
            break
    else:
        return None
    usual = _usual([call.kind for call in calls.values()], _history(traces, number), number)
    wrong = [rank for rank, call in calls.items() if call.kind != usual]
    right = next(rank for rank in calls if rank not in wrong)
    first = next(peer for peer in peers if peer.rank == wrong[0])
    text = f"skipped a collective, or called one too many, in {first.where}: it called {calls[wrong[0]]}, "
    return Verdict(wrong, f"{_names(peers, wrong)} {text}where rank {right} called {calls[right]}")


def _history(traces: Mapping[int, Mapping[int, Call]], end: int) -> dict[int, Kind]:
    """Return the calls of all ranks before a number."""
    return {number: call.kind for trace in traces.values() for number, call in trace.items() if number < end}


def _usual(called: Sequence[Kind], history: Mapping[int, Kind], number: int) -> Kind:
    """Return the correct call among the candidates.

    It is the call of the majority; in a tie, the call that previously followed the longest matching history; and
    without such history, the one that usually precedes the other, as skipping a call is more common than adding one.
    """
    counts = Counter(called).most_common()
    if counts[0][1] > counts[1][1]:
        return counts[0][0]
    stretches = [(_stretch(history, earlier, number), earlier) for earlier, kind in history.items() if kind in called]
    longest, where = max(stretches, default=(0, 0))
    if longest:
        return history[where]
    pairs = {(kind, history.get(earlier + 1)) for earlier, kind in history.items()}
    return next((first for first, _ in counts for then, _ in counts if (first, then) in pairs), counts[0][0])


def _stretch(history: Mapping[int, Kind], earlier: int, number: int) -> int:
    """Return the number of equal calls immediately before two numbers, at most 64."""
    same = 0
    while same < 64 and number - same - 1 in history:
        if history.get(earlier - same - 1) != history[number - same - 1]:
            break
        same += 1
    return same


def _failed(peers: Sequence[Peer]) -> Verdict | None:
    failed = [peer for peer in peers if peer.heartbeat and peer.heartbeat.state == "failed"]
    if not failed:
        return None
    first = failed[0]
    error = first.heartbeat.error if first.heartbeat else ""
    return Verdict(
        [p.rank for p in failed], f"{_names(peers, [p.rank for p in failed])} failed in {first.where}: {error}"
    )


def _absent(peers: Sequence[Peer]) -> Verdict | None:
    texts = {
        "never": "never started",
        "gone": "died in {where}; its last collective was {last}",
        "silent": "stopped responding in {where} (suspended, or its machine is down); its last collective was {last}",
    }
    for condition, template in texts.items():
        absent = [peer for peer in peers if peer.condition == condition and not _ended_with_the_run(peer)]
        if absent:
            text = template.format(where=absent[0].where, last=absent[0].last)
            return Verdict([p.rank for p in absent], f"{_names(peers, [p.rank for p in absent])} {text}")
    return None


def _ended_with_the_run(peer: Peer) -> bool:
    """Return whether a rank ended only because the run did."""
    return peer.heartbeat is not None and (peer.heartbeat.state in ("answering", "finished"))


def _outside(peers: Sequence[Peer]) -> Verdict | None:
    """Find ranks that are busy or finished while others wait for them."""
    waiting = [peer for peer in peers if peer.answer and peer.answer.waiting]
    outside = [peer for peer in peers if peer.heartbeat and not (peer.answer and peer.answer.waiting)]
    if not waiting or not outside:
        return None
    first, ranks = outside[0], [peer.rank for peer in outside]
    if first.heartbeat and first.heartbeat.state == "finished":
        status = f"finished after {first.where}"
    else:
        place = f", at {first.answer.place}" if first.answer else ""
        status = f"blocks the others in {first.where}{place}"
    return Verdict(ranks, f"{_names(peers, ranks)} {status}, while rank {waiting[0].rank} waits in {waiting[0].last}")


def _behind(peers: Sequence[Peer]) -> Verdict | None:
    """Find ranks that have called fewer collectives; on a GPU, calling a collective does not wait for it."""
    numbers = {peer.rank: peer.trace[-1].number for peer in peers if peer.trace}
    if len(numbers) < len(peers) or min(numbers.values()) == max(numbers.values()):
        return None
    ranks = [rank for rank, number in numbers.items() if number == min(numbers.values())]
    first = next(peer for peer in peers if peer.rank == ranks[0])
    place = f", at {first.answer.place}" if first.answer else ""
    ahead = max(numbers.values()) - numbers[first.rank]
    text = f"is {ahead} collectives behind in {first.where}{place}; its last was {first.last}"
    return Verdict(ranks, f"{_names(peers, ranks)} {text}")


def _undecided(peers: Sequence[Peer]) -> Verdict:
    first = peers[0]
    place = f", at {first.answer.place}" if first.answer else ""
    names = f"{first} is" if len(peers) == 1 else f"no rank stands out: all {len(peers)} ranks respond, {first} is"
    return Verdict([], f"{names} in {first.where}{place}")


def _names(peers: Sequence[Peer], ranks: Sequence[int]) -> str:
    first = next(peer for peer in peers if peer.rank == ranks[0])
    more = f" and {len(ranks) - 1} more (ranks {', '.join(map(str, ranks[1:9]))})" if len(ranks) > 1 else ""
    return f"{first}{more}"
