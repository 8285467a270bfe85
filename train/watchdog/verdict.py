"""Which rank holds a run up: judged from what the ranks say of themselves, alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from train.watchdog.collectives import Call
from train.watchdog.heartbeat import Answer, Heartbeat

Kind = tuple[str, str, int]  # group, name and elements of a call
# never: it has not begun; gone: its process has ended; silent: its heartbeat stands still; alive: it goes on
Condition = Literal["never", "gone", "silent", "alive"]


@dataclass(frozen=True)
class Peer:
    """What is known of one rank."""

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
        """What the rank is doing."""
        if self.heartbeat is None:
            return "nowhere yet"
        phase = self.heartbeat.phase.replace("_", " ")
        at = f"step {self.heartbeat.step}"
        return at if phase == "step" else (phase if phase == "preparation" else f"{phase}, {at}")

    @property
    def last(self) -> str:
        """The last collective that the rank called."""
        return str(self.trace[-1]) if self.trace else (self.heartbeat.collective if self.heartbeat else "") or "none"


class Verdict(NamedTuple):
    """Who holds the run up, and why that is known."""

    ranks: list[int]  # none: nobody stands out
    text: str


def judge(peers: Sequence[Peer]) -> Verdict:
    """Name the rank, or ranks, that hold the others up.

    In this order: one whose collectives do not match the others', which is why some of them may be dead; one that
    failed with an error of its own; those that are gone, silent or never came; one that is not in a collective while
    others wait in one; one that has called fewer.
    """
    for find in (_mismatched, _failed, _absent, _outside, _behind):
        found = find(peers)
        if found is not None:
            return found
    return _nobody(peers)


def _mismatched(peers: Sequence[Peer]) -> Verdict | None:
    """Find the first collective on which ranks differ: the few are wrong, and of two the one without precedent."""
    traces = {peer.rank: {call.number: call for call in peer.trace} for peer in peers if peer.trace}
    numbers = sorted({number for trace in traces.values() for number in trace})
    for number in numbers:
        there = {rank: trace[number] for rank, trace in traces.items() if number in trace}
        if len({call.kind for call in there.values()}) > 1:
            break
    else:
        return None
    usual = _usual([call.kind for call in there.values()], _history(traces, number), number)
    wrong = [rank for rank, call in there.items() if call.kind != usual]
    right = next(rank for rank in there if rank not in wrong)
    named = next(peer for peer in peers if peer.rank == wrong[0])
    text = f"left out a collective, or called one too many, in {named.where}: it called {there[wrong[0]]}, "
    return Verdict(wrong, f"{_named(peers, wrong)} {text}where rank {right} called {there[right]}")


def _history(traces: Mapping[int, Mapping[int, Call]], end: int) -> dict[int, Kind]:
    """Return what all ranks called before a number."""
    return {number: call.kind for trace in traces.values() for number, call in trace.items() if number < end}


def _usual(called: Sequence[Kind], history: Mapping[int, Kind], number: int) -> Kind:
    """Return which of the calls is the right one.

    It is what most ranks call; without a majority what has followed the longest stretch of the same calls before; and
    at a new place, that which has come before the other, since to leave one out is commoner than to add one.
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
    """Return how many calls before two numbers are the same; at most 64."""
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
        [p.rank for p in failed], f"{_named(peers, [p.rank for p in failed])} failed in {first.where}: {error}"
    )


def _absent(peers: Sequence[Peer]) -> Verdict | None:
    words = {
        "never": "never came: it has not begun, or still reads its data",
        "gone": "died in {where}; its last collective was {last}",
        "silent": "stopped answering in {where} (suspended, or its machine is gone); its last collective was {last}",
    }
    for condition, word in words.items():
        found = [peer for peer in peers if peer.condition == condition and not _has_told(peer)]
        if found:
            text = word.format(where=found[0].where, last=found[0].last)
            return Verdict([p.rank for p in found], f"{_named(peers, [p.rank for p in found])} {text}")
    return None


def _has_told(peer: Peer) -> bool:
    """Whether it ended only because the run did."""
    return peer.heartbeat is not None and (peer.heartbeat.state in ("answering", "finished"))


def _outside(peers: Sequence[Peer]) -> Verdict | None:
    """Find ranks that are at work, or done, while others wait for them."""
    waiting = [peer for peer in peers if peer.answer and peer.answer.waiting]
    outside = [peer for peer in peers if peer.heartbeat and not (peer.answer and peer.answer.waiting)]
    if not waiting or not outside:
        return None
    first, ranks = outside[0], [peer.rank for peer in outside]
    if first.heartbeat and first.heartbeat.state == "finished":
        doing = f"has finished after {first.where}"
    else:
        place = f", at {first.answer.place}" if first.answer else ""
        doing = f"holds the others up in {first.where}{place}"
    return Verdict(ranks, f"{_named(peers, ranks)} {doing}, while rank {waiting[0].rank} waits in {waiting[0].last}")


def _behind(peers: Sequence[Peer]) -> Verdict | None:
    """Find ranks that have called fewer collectives: those of a GPU are called without waiting in them."""
    numbers = {peer.rank: peer.trace[-1].number for peer in peers if peer.trace}
    if len(numbers) < len(peers) or min(numbers.values()) == max(numbers.values()):
        return None
    ranks = [rank for rank, number in numbers.items() if number == min(numbers.values())]
    first = next(peer for peer in peers if peer.rank == ranks[0])
    place = f", at {first.answer.place}" if first.answer else ""
    ahead = max(numbers.values()) - numbers[first.rank]
    text = f"is {ahead} collectives behind in {first.where}{place}; its last was {first.last}"
    return Verdict(ranks, f"{_named(peers, ranks)} {text}")


def _nobody(peers: Sequence[Peer]) -> Verdict:
    first = peers[0]
    who = "the one rank" if len(peers) == 1 else f"all {len(peers)} ranks"
    place = f", at {first.answer.place}" if first.answer else ""
    named = f"{first} is" if len(peers) == 1 else f"no rank stands out: {who} answer, {first} is"
    return Verdict([], f"{named} in {first.where}{place}")


def _named(peers: Sequence[Peer], ranks: Sequence[int]) -> str:
    first = next(peer for peer in peers if peer.rank == ranks[0])
    more = f" and {len(ranks) - 1} more (ranks {', '.join(map(str, ranks[1:9]))})" if len(ranks) > 1 else ""
    return f"{first}{more}"
