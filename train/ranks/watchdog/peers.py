"""Conditions of the other ranks according to their heartbeats: alive, silent, gone, or never started."""

from __future__ import annotations

import datetime
import math
import time
from dataclasses import replace
from pathlib import Path

from train.ranks.watchdog import heartbeat
from train.ranks.watchdog.collectives import Call, read_trace, trace_path
from train.ranks.watchdog.heartbeat import BEAT_SECONDS, Heartbeat
from train.ranks.watchdog.verdict import Condition, Peer

SILENCE_SECONDS = 5 * BEAT_SECONDS  # without a change, after which a heartbeat counts as stopped


class Peers:
    """The ranks, observed through their heartbeats; a rank whose heartbeat changes is alive.

    Args:
        folder: The run folder.
        size: Number of ranks.
        rank: This rank, which is alive.
        host: This machine, on which it can be checked whether a process still exists.
        began: Start time of this rank's process, in seconds since the epoch.
    """

    def __init__(self, folder: Path, size: int, *, rank: int, host: str, began: float):
        self._folder, self._rank, self._host, self._began = folder, rank, host, began
        self._until = time.monotonic() + SILENCE_SECONDS
        self._moved: dict[int, float] = {}  # when a rank's heartbeat was last seen to change
        self._last = {rank: self._beat(rank) for rank in range(size)}
        self.pause = min(max(0.25, size / 100), SILENCE_SECONDS / 4)  # with many ranks, poll the file system less often

    def _beat(self, rank: int) -> Heartbeat | None:
        return heartbeat.read(heartbeat.path_of(self._folder, rank))

    def settled(self) -> bool:
        """Return whether the condition of every rank is known."""
        conditions = [self._look_at(rank)[0] for rank in self._last]
        return time.monotonic() > self._until or not {"silent", "never"} & set(conditions)

    def look(self) -> list[Peer]:
        """Return the current state of all ranks."""
        return [self._peer(rank) for rank in self._last]

    def all_answered(self) -> bool:
        """Return whether every rank that is alive has answered."""
        return all(peer.answer is not None or peer.condition != "alive" for peer in self.look())

    def _peer(self, rank: int) -> Peer:
        condition, beat = self._look_at(rank)
        if beat is None or condition == "never":
            return Peer(rank, "never")
        answer = heartbeat.read_answer(heartbeat.answer_path(self._folder, rank)) if beat.state == "answering" else None
        if answer:
            return Peer(rank, condition, beat, answer, [Call(*call) for call in answer.trace])
        trace = read_trace(trace_path(self._folder, rank)) if beat.host == self._host else None
        if trace is None:
            return Peer(rank, condition, beat)
        return Peer(rank, condition, replace(beat, phase=trace.phase, step=trace.step), None, trace.calls)

    def _look_at(self, rank: int) -> tuple[Condition, Heartbeat | None]:
        before = self._last[rank]
        self._last[rank] = beat = self._beat(rank) or before
        if beat is None:
            return "never", None
        if before is None or (beat.beat, beat.pid) != (before.beat, before.pid):
            self._moved[rank] = time.monotonic()
        if rank == self._rank:
            return "alive", beat
        if rank not in self._moved and self._is_of_an_earlier_start(beat):
            return "never", beat
        ended = beat.state in ("failed", "finished", "stopped")
        if ended or heartbeat.is_process_gone(beat.host, beat.pid, this_host=self._host):
            return "gone", beat
        return ("alive" if time.monotonic() - self._moved.get(rank, -math.inf) < SILENCE_SECONDS else "silent"), beat

    def _is_of_an_earlier_start(self, beat: Heartbeat) -> bool:
        """Return whether it was written well before this process started; ranks start within a minute of each other."""
        return datetime.datetime.fromisoformat(beat.time).timestamp() < self._began - 60


def is_busy(peer: Peer) -> bool:
    """Return whether a rank is alive and within its own deadline."""
    beat = peer.heartbeat
    return peer.condition == "alive" and beat is not None and beat.state == "running" and not beat.is_overdue


def answers(peer: Peer) -> bool:
    """Return whether a rank is alive and has answered, or is about to."""
    return peer.condition == "alive" and peer.heartbeat is not None and peer.heartbeat.state == "answering"


def published_verdict(peers: list[Peer]) -> str:
    """Return the verdict that another rank has already published; empty if there is none."""
    return next((peer.heartbeat.verdict for peer in peers if peer.heartbeat and peer.heartbeat.verdict), "")
