"""Lock of a run folder (RUN/lock): only one training run writes there at a time.

Rank 0 creates the file exclusively and deletes it at the end; the other ranks wait until it names their own world. A
lock whose holder was killed is taken over: at once if its process can be asked about and is gone, else once the job is
over or no heartbeat has changed for `SILENT_SECONDS`. Nothing here imports torch, so a second start is refused at once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from train.config.errors import ConfigError
from train.config.facts.run_layout import CONFIG, HEARTBEATS, LOCK
from train.ranks.launcher_env import slurm_job_is_running
from train.ranks.watchdog import heartbeat
from train.ranks.watchdog.heartbeat import BEAT_SECONDS, START_SECONDS
from train.ranks.watchdog.lock_holder import Holder, is_alive, read_holder, this_process

logger = logging.getLogger(__name__)

SILENT_SECONDS = 120.0  # without a sign of life, after which a holder that cannot be asked counts as gone
_QUIET_SECONDS = 5 * BEAT_SECONDS  # without a sign of life, after which a process counts as not beating
_POLL_SECONDS = 0.1


class RunInUseError(ConfigError):
    """Another training run holds the lock."""


class RunLock:
    """The lock of a run folder, as seen by one rank; a context manager that releases what `take` has taken.

    Args:
        folder: The run folder.
        environment: Environment variables, with torchrun's or SLURM's for this rank.
        query_job: Returns whether a SLURM job is running, or None if SLURM cannot be asked.
    """

    def __init__(
        self,
        folder: Path,
        *,
        environment: Mapping[str, str] = os.environ,
        query_job: Callable[[str], bool | None] = slurm_job_is_running,
    ) -> None:
        self._folder, self._path = folder, folder / LOCK
        self._is_main = environment.get("RANK", "0") == "0"
        self._rank = environment.get("RANK", "0")
        self._query_job = query_job
        self._me = this_process(environment)
        self._created: list[Path] = []  # folders, outermost first

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock, on rank 0; a run that was refused before it wrote its configuration leaves no folder."""
        if self._is_main:
            self._release()

    def take(self) -> None:
        """Take the lock on rank 0; on other ranks, wait until rank 0 has taken it.

        Raises:
            RunInUseError: Another run holds it.
            OSError: The run folder cannot be written.
        """
        if not self._is_main:
            self._wait_for_rank_0()
            return
        self._make_folder()
        while not self._create():
            holder = read_holder(self._path)
            if holder is None:
                self._wait_for_content()
                continue
            reason = self._why_gone(holder)
            if self._remove_if(lambda holder=holder: read_holder(self._path) == holder):
                logger.warning("%s: took over the lock of %s, which %s", self._folder, holder, reason)

    # --------------------------------------------------------------------------------------------------- the file

    def _make_folder(self) -> None:
        missing = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._created = missing[::-1]

    def _create(self) -> bool:
        """Create the lock; return False if there is one."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(self._me), file, indent=1)
        except BaseException:  # a full disk, or a signal
            self._path.unlink(missing_ok=True)
            raise
        return True

    def _wait_for_content(self) -> None:
        """Give the process that has just created the lock time to fill it; a kill in between leaves it empty."""
        self._remove_if(lambda: _QUIET_SECONDS < _age(self._path) < math.inf and read_holder(self._path) is None)
        time.sleep(_POLL_SECONDS)

    def _remove_if(self, is_stale: Callable[[], bool]) -> bool:
        """Remove the lock if it is stale, and return whether it was.

        Of several starts, only one at a time may look and remove: the one that can create a second file. Otherwise a
        slow start could remove the new lock of a faster one, in place of the stale one that both have seen.
        """
        turn = self._path.with_name(f"{LOCK}.takeover")
        try:
            os.close(os.open(turn, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            if _age(turn) > _QUIET_SECONDS:  # killed while it had its turn
                turn.unlink(missing_ok=True)
            return False
        try:
            if not is_stale():
                return False
            self._path.unlink(missing_ok=True)
            return True
        finally:
            turn.unlink(missing_ok=True)

    def _release(self) -> None:
        if read_holder(self._path) == self._me:
            self._path.unlink(missing_ok=True)
        if (self._folder / CONFIG).exists():
            return
        with suppress(OSError):  # not empty: it was there before
            left = {path.name for path in self._folder.iterdir()}
            if left <= {HEARTBEATS}:
                shutil.rmtree(self._folder / HEARTBEATS, ignore_errors=True)
            for path in reversed(self._created):
                path.rmdir()

    # ------------------------------------------------------------------------------------------------- the holder

    def _why_gone(self, holder: Holder) -> str:
        """Return how it is known that a holder is gone; may wait for signs of life.

        Raises:
            RunInUseError: It is alive.
        """
        if holder.host == self._me.host and holder.boot != self._me.boot:
            self._await_silence(holder, _QUIET_SECONDS)  # two machines may share a name
            return "ended when the machine was restarted"
        if (holder.boot, holder.namespace) == (self._me.boot, self._me.namespace):
            if is_alive(holder):
                raise self._in_use(holder)
            self._await_silence(holder, 0)
            return "has ended without releasing it"
        same_job = bool(holder.job) and holder.job == self._me.job
        is_running = self._query_job(holder.job) if holder.job and not same_job else None
        if is_running:
            raise self._in_use(holder)
        if same_job or is_running is False:  # SLURM has ended the earlier start, but a lost node may not know yet
            self._await_silence(holder, _QUIET_SECONDS)
            return "belonged to an earlier start of this job" if same_job else "belonged to a job that is over"
        self._await_silence(holder, SILENT_SECONDS)
        return f"cannot be reached and has given no sign of life for {SILENT_SECONDS:g} s"

    def _await_silence(self, holder: Holder, seconds: float) -> None:
        """Wait until no rank of the holder's world has given a sign of life for so long.

        Silence from before counts too, but not alone: clocks differ, so the last seconds are observed here.

        Raises:
            RunInUseError: One of them keeps doing so.
        """
        before, changed = self._signs(), 0
        quiet_since = time.monotonic() - max(0.0, min(seconds, self._silence()) - _QUIET_SECONDS)
        while time.monotonic() - quiet_since < seconds or self._is_beating():
            time.sleep(_POLL_SECONDS)
            now = self._signs()
            if now != before:
                before, changed, quiet_since = now, changed + 1, time.monotonic()
            if changed > _QUIET_SECONDS / BEAT_SECONDS:  # ranks that outlive rank 0 end sooner
                raise self._in_use(holder)

    def _beats(self) -> list[heartbeat.Heartbeat]:
        found = (heartbeat.read(path) for path in sorted((self._folder / HEARTBEATS).glob("rank_?????.json")))
        return [beat for beat in found if beat is not None and beat.state in ("running", "answering")]

    def _signs(self) -> list[tuple[int, int, int]]:
        """Return what changes as long as a rank is alive."""
        return [(beat.rank, beat.pid, beat.beat) for beat in self._beats()]

    def _is_beating(self) -> bool:
        """Return whether a rank wrote its heartbeat just now and is not known to have ended since."""
        alive = [b for b in self._beats() if not heartbeat.is_process_gone(b.host, b.pid, this_host=self._me.host)]
        return any(_age(heartbeat.path_of(self._folder, beat.rank)) < _QUIET_SECONDS for beat in alive)

    def _silence(self) -> float:
        """Return the seconds since the last sign of life, by the clock of this machine."""
        beats = [heartbeat.path_of(self._folder, beat.rank) for beat in self._beats()]
        return min(_age(path) for path in (self._path, *beats))

    def _wait_for_rank_0(self) -> None:
        began = time.monotonic()
        while (holder := read_holder(self._path)) is None or holder.world != self._me.world:
            waited = time.monotonic() - began
            if waited > START_SECONDS:
                if holder is not None:
                    raise self._in_use(holder)
                raise ConfigError([f"rank {self._rank}: rank 0 has not started within {START_SECONDS:g} s"])
            time.sleep(max(_POLL_SECONDS, min(1.0, waited / 10)))  # there may be a thousand ranks
            self._look_again()

    def _look_again(self) -> None:
        """Make a network file system look for the lock: it may remember for a minute that a file was absent."""
        for folder in (self._folder.parent, self._folder):
            with suppress(OSError):
                os.utime(folder)

    def _in_use(self, holder: Holder) -> RunInUseError:
        stop = f"scancel {holder.job}" if holder.job else f"kill {holder.pid}"
        return RunInUseError(
            [
                f"{self._folder}: {holder} has been training this run since {holder.since}; wait for it, stop it "
                f"({stop} saves a checkpoint first), or choose another name (name=...)"
            ]
        )


def _age(path: Path) -> float:
    """Return the seconds since a file was written; infinite if it is gone."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return math.inf
