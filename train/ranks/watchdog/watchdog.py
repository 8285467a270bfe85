"""Watchdog that terminates a hanging run in bounded time and reports the rank responsible.

The main thread declares its current phase (`enter`), and a thread watches the deadline of that phase. Once it has
passed, the rank checks the heartbeats of the others: it keeps waiting while any of them is alive and within a longer
deadline of its own (rank 0 saves while the others are already at the next step). Otherwise every rank that still
responds records its stacks; the lowest of them determines the verdict, writes RUN/stacks.txt and logs the culprit last,
and all exit with code 1, about `SILENCE_SECONDS` plus a few seconds after the deadline.

As a fallback, faulthandler's timer needs neither the GIL nor a file system: if this process cannot do the above, the
timer prints its stacks to standard error and ends it a little later.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, NoReturn

import torch.distributed

from train.config.facts.run_layout import STACKS
from train.config.run import WatchdogConfig
from train.ranks.launcher_env import report_to_torchrun
from train.ranks.stopping import StoppedInPreparationError
from train.ranks.watchdog import heartbeat
from train.ranks.watchdog.collectives import Collectives, failed_in_a_collective, read_trace, trace_path
from train.ranks.watchdog.heartbeat import Answer, Heartbeat, HeartbeatWriter
from train.ranks.watchdog.peers import SILENCE_SECONDS, Peers, answers, is_busy, published_verdict
from train.ranks.watchdog.verdict import Peer, Verdict, judge

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
_STUCK_SECONDS = 60.0  # for the verdict, before faulthandler ends the process
_LONGEST = datetime.timedelta(days=20)  # torch counts milliseconds in 32 bits
_TRACE_CALLS = 2000  # in an answer


class Phase(NamedTuple):
    """The current phase of the main thread."""

    name: str
    step: int
    since: float  # time.monotonic()
    deadline: float | None  # seconds


def process_group_timeout(config: WatchdogConfig) -> datetime.timedelta:
    """Return the timeout of collectives: longer than any deadline, so that the watchdog reports first."""
    longest = _longest(config)
    if longest is None:
        return _LONGEST
    return min(_LONGEST, datetime.timedelta(seconds=longest + 5 * _STUCK_SECONDS))


def _longest(config: WatchdogConfig) -> float | None:
    """Return the longest deadline in seconds; None if any phase has no deadline."""
    deadlines = (config.step, config.first_step, config.evaluation, config.save, config.preparation)
    limits = [deadline for deadline in deadlines if deadline is not None]
    return max(limits) if len(limits) == len(deadlines) else None


class Watchdog:
    """Context manager that watches this rank.

    An error that leaves the context is published in the heartbeat. An error from a collective ends the process with
    exit code 1, once the lost rank is known; but if that rank was stopped by a signal in preparation, it becomes a
    StoppedInPreparationError, as this rank has nothing to save either.

    Args:
        config: The deadlines.
        folder: The run folder.
        rank: This rank.
        size: Number of ranks.
    """

    def __init__(self, config: WatchdogConfig, folder: Path, *, rank: int, size: int):
        self._config, self._folder, self._rank, self._size = config, folder, rank, size
        self._host, self._began = socket.gethostname(), time.time()
        self._main = threading.get_ident()
        self._collectives = Collectives(trace_path(folder, rank))
        self._state: heartbeat.State = "running"
        self._error = self._verdict = ""
        self._has_stepped = False
        self._suspended: tuple[Phase | None, float] = (None, 0.0)  # seconds of a phase in which nothing ran
        self._done = threading.Event()
        self._writer = HeartbeatWriter(heartbeat.path_of(folder, rank), self._describe)
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.enter("preparation")

    def enter(self, name: str, step: int = 0) -> None:
        """Enter a phase (preparation, step, evaluation or save); its deadline starts now."""
        if name == "step" and not self._has_stepped:
            name, self._has_stepped = "first_step", True
        self._phase = Phase(name, step, time.monotonic(), getattr(self._config, name))
        self._collectives.note(name, step)

    def __enter__(self) -> Watchdog:
        self._collectives.install()
        self._collectives.note(self._phase.name, self._phase.step)
        with contextlib.suppress(OSError):
            heartbeat.answer_path(self._folder, self._rank).unlink(missing_ok=True)
        self._writer.start()
        self._watcher.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        stopped = isinstance(error, StoppedInPreparationError)
        if error is not None and self._size > 1 and is_lost_contact(error):
            self._stop_watching()
            stopped = self._report_lost_contact(error)
        self._state = "stopped" if stopped else "failed" if isinstance(error, Exception) else "finished"
        self._error = f"{type(error).__name__}: {_first_line(error)}" if error is not None else ""
        self._writer.write_now(timeout=5)
        self._stop_watching()
        self._writer.stop()
        self._collectives.remove(forget=True)
        if stopped and not isinstance(error, StoppedInPreparationError):
            raise StoppedInPreparationError("a signal to another rank") from error

    def _stop_watching(self) -> None:
        self._done.set()
        self._watcher.join(timeout=5)
        faulthandler.cancel_dump_traceback_later()

    # ------------------------------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        tick, beat, longest = time.monotonic(), 0.0, _longest(self._config)
        while not self._done.wait(_TICK_SECONDS):
            now = time.monotonic()
            if now - tick > 2 + _TICK_SECONDS:  # this process was suspended; do not count that time
                self._excuse(now - tick)
            tick = now
            if now - beat > heartbeat.BEAT_SECONDS:
                beat = now
                self._arm(None if longest is None else longest + _STUCK_SECONDS)
                self._require_all_ranks(self._phase)
            if self._is_overdue():
                self._look_around(self._phase)
                tick = time.monotonic()

    def _excuse(self, seconds: float) -> None:
        phase, before = self._suspended
        self._suspended = (self._phase, seconds + (before if phase is self._phase else 0.0))

    def _seconds(self, phase: Phase) -> float:
        excused_phase, excused = self._suspended
        return time.monotonic() - phase.since - (excused if excused_phase is phase else 0.0)

    def _is_overdue(self) -> bool:
        phase = self._phase
        return phase.deadline is not None and self._seconds(phase) >= phase.deadline

    def _require_all_ranks(self, phase: Phase) -> None:
        """End the run on rank 0 if other ranks have never started: the process group would wait for them for long."""
        if self._rank or phase.name != "preparation" or self._seconds(phase) < heartbeat.START_SECONDS:
            return
        peers = Peers(self._folder, self._size, rank=self._rank, host=self._host, began=self._began)
        if any(peer.condition == "never" for peer in peers.look()):
            self._end(peers, f"not all ranks have started within {heartbeat.START_SECONDS:g} s")

    def _arm(self, seconds: float | None) -> None:
        """Let faulthandler end the process after this time, unless re-armed."""
        if seconds is None:
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(seconds, exit=True, file=2)

    def _look_around(self, phase: Phase) -> None:
        """End the run unless this rank makes progress; wait for ranks that are within their own deadlines."""
        peers = Peers(self._folder, self._size, rank=self._rank, host=self._host, began=self._began)
        while self._phase is phase and not self._done.is_set():
            self._arm(_STUCK_SECONDS)
            if peers.settled() and not any(is_busy(peer) for peer in peers.look()):
                self._end(peers, f"{phase.name.replace('_', ' ')} took longer than watchdog.{phase.name} allows")
            self._done.wait(peers.pause)

    # ------------------------------------------------------------------------------------------------- the end

    def _report_lost_contact(self, error: BaseException) -> bool:
        """End the run and report the rank that is gone; return only if no rank failed.

        Returns:
            True if a rank is gone because a signal stopped it in preparation; False if the error is this rank's own.
        """
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun terminates all ranks as soon as one has died
        self._arm(_STUCK_SECONDS)
        peers = Peers(self._folder, self._size, rank=self._rank, host=self._host, began=self._began)
        while not peers.settled():
            time.sleep(peers.pause)
        ranks = peers.look()
        if any(peer.heartbeat and peer.heartbeat.state == "stopped" for peer in ranks if peer.condition == "gone"):
            return True
        if all(peer.condition == "alive" and not answers(peer) for peer in ranks):
            return False
        innermost = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
        self._answer(innermost, stacks="".join(traceback.format_exception(error)), waiting=True)
        self._finish(peers, f"lost contact with another rank ({_first_line(error)})")

    def _end(self, peers: Peers, reason: str) -> None:
        self._answer()
        until = time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < until and not peers.all_answered():
            time.sleep(peers.pause)
        self._finish(peers, reason)

    def _answer(self, frame: FrameType | None = None, *, stacks: str = "", waiting: bool = False) -> None:
        """Publish this rank's position for the verdict: the frame of an error, or the current frame."""
        frames = sys._current_frames()
        frame = frame or frames[self._main]
        trace = read_trace(trace_path(self._folder, self._rank))
        answer = Answer(
            waiting=waiting or self._is_waiting(frame),
            place=_place(frame),
            stacks=stacks or "".join(_stacks(frames, first=self._main)),
            trace=[list(call) for call in trace.calls[-_TRACE_CALLS:]] if trace else [],
        )
        with contextlib.suppress(OSError):
            heartbeat.write(heartbeat.answer_path(self._folder, self._rank), answer)
        self._state = "answering"
        self._writer.write_now(timeout=5)

    def _is_waiting(self, frame: FrameType) -> bool:
        inside = self._collectives.is_waiting(self._main)
        return inside or (frame.f_code.co_name == "wait" and "torch" in frame.f_code.co_filename)

    def _finish(self, peers: Peers, reason: str) -> NoReturn:
        """Let the lowest responding rank report the verdict, and end the process."""
        self._arm(_STUCK_SECONDS)
        ranks = peers.look()
        reporter = min([self._rank, *[p.rank for p in ranks if answers(p)]])
        verdict = published_verdict([peer for peer in ranks if peer.rank != self._rank])
        if reporter == self._rank and not verdict:
            self._verdict = verdict = self._report_verdict(ranks, reason)
            self._writer.write_now(timeout=5)
            self._delete_dead_traces(ranks)
            time.sleep(3 * peers.pause)  # the others exit once they read it; torchrun would terminate all of us at once
        else:
            until = time.monotonic() + SILENCE_SECONDS
            while not verdict and time.monotonic() < until:
                time.sleep(peers.pause)
                verdict = published_verdict(peers.look())
        report_to_torchrun(verdict or reason)
        self._collectives.remove(forget=True)
        logging.shutdown()
        os._exit(1)

    def _report_verdict(self, ranks: list[Peer], reason: str) -> str:
        verdict = judge(ranks)
        dump_flight_recorder(self._folder, self._rank)
        advice = "run the same command again to resume"
        if not verdict.ranks:
            advice = (
                f"raise watchdog.{self._phase.name} ({self._phase.deadline:g} s) if the phase may take longer; {advice}"
            )
        path = self._folder / STACKS
        answered = sum(peer.answer is not None for peer in ranks)
        with contextlib.suppress(OSError):
            path.write_text(_report(verdict, reason, ranks))
        logger.error("%s: stacks of %d of %d ranks are in %s; %s", reason, answered, len(ranks), path, advice)
        logger.error("%s", verdict.text)
        return verdict.text

    def _delete_dead_traces(self, ranks: list[Peer]) -> None:
        for peer in ranks:
            if peer.condition == "gone" and peer.heartbeat and peer.heartbeat.host == self._host:
                trace_path(self._folder, peer.rank).unlink(missing_ok=True)

    def _describe(self, beat: int) -> Heartbeat:
        phase, last = self._phase, self._collectives.last
        return Heartbeat(
            rank=self._rank,
            host=self._host,
            pid=os.getpid(),
            beat=beat,
            time=heartbeat.now(),
            state=self._state,
            phase=phase.name,
            step=phase.step,
            seconds=round(self._seconds(phase), 1),
            deadline=phase.deadline,
            collective=str(last) if last else "",
            error=self._error,
            verdict=self._verdict,
        )


def is_lost_contact(error: BaseException) -> bool:
    """Return whether an error means that another rank is gone, rather than that this one failed."""
    if type(error) is not RuntimeError and not isinstance(error, torch.distributed.DistError):
        return False
    signs = ("Connection closed by peer", "Connection reset by peer", "NCCL", "Timed out waiting", "Broken pipe")
    return failed_in_a_collective(error) or any(sign in str(error) for sign in signs)


def dump_flight_recorder(folder: Path, rank: int) -> None:
    """Write NCCL's flight record, if there is one, for `torch.distributed.flight_recorder.fr_trace`."""
    from torch._C import _distributed_c10d

    dump = getattr(_distributed_c10d, "_dump_nccl_trace", None)  # missing without CUDA
    if dump is None:
        return
    with contextlib.suppress(OSError, RuntimeError):
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "logs" / f"nccl_trace_{rank}").write_bytes(dump())


def record_flights(folder: Path) -> None:
    """Enable NCCL's flight recorder; call before the process group starts."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "logs" / "nccl_trace_"))


def _report(verdict: Verdict, reason: str, ranks: list[Peer]) -> str:
    parts = [f"{verdict.text}\n{heartbeat.now()}: {reason}\n"]
    for peer in ranks:
        parts.append(f"\n==== {peer}: {peer.condition}, in {peer.where}; last collective: {peer.last}\n\n")
        parts.append(peer.answer.stacks if peer.answer else "(no answer)\n")
    return "".join(parts)


def _stacks(frames: dict[int, FrameType], *, first: int) -> Iterator[str]:
    """Yield the stack of every thread, innermost call last, without reading source files."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for thread in sorted(frames, key=lambda ident: (ident != first, ident)):
        yield f"thread {names.get(thread, thread)}, innermost call last:\n"
        for frame in reversed(list(_outwards(frames[thread]))):
            yield f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}\n"


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType) -> str:
    """Return the innermost line outside of libraries and the watchdog itself."""
    files_of_ours = (__file__, heartbeat.__file__, "train/ranks/watchdog/collectives.py")
    foreign = ("site-packages", "/lib/python", "<frozen", *files_of_ours)
    own = (f for f in _outwards(frame) if not any(part in f.f_code.co_filename for part in foreign))
    frame = next(own, frame)
    path = Path(frame.f_code.co_filename)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return f"{path}:{frame.f_lineno} in {frame.f_code.co_name}"


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[\S+:\d+\] ", "", lines[0]).split(". ")[0][:160]  # without gloo's source file and advice
