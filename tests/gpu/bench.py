"""The surroundings of a stage: options, the time left, items with their results, training runs as child processes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.gpu.report import FAILED, NOT_RUN, OK, Report
from tests.gpu.stage import last_line

ROOT = Path(__file__).parents[2]
AT_ONCE = 4  # processes that share the card
# What a run imports, the last of them from inside DeepSpeed.
IMPORTED_BY_RUNS = ("train.rank", "torch._inductor.compile_fx", "torch._dynamo.backends.debugging")


@dataclass(frozen=True)
class Options:
    """What the command line says, and where runs go."""

    out: str
    data: str  # a folder made by tests.gpu.kit.data
    work: str  # for run folders; removed at the end
    device: str  # cuda | cpu
    tiny: bool
    items: Sequence[str] = ()  # parts of the names of the items to do; empty: all

    def as_json(self) -> str:
        """Return it for a stage's command line."""
        return json.dumps(asdict(self))


class SkippedError(Exception):
    """An item that is not run, for a reason that is no fault."""


class OutOfTimeError(RuntimeError):
    """An item that did not end within the stage's time."""


class Bench:
    """A stage under way."""

    def __init__(self, stage: str, options: Options, *, seconds: float) -> None:
        self.options = options
        self.report = Report(Path(options.out), stage)
        self.work = Path(options.work) / stage
        self.work.mkdir(parents=True, exist_ok=True)
        self._end = time.monotonic() + seconds
        self.report.write()

    @property
    def on_gpu(self) -> bool:
        """Whether there is a card."""
        return self.options.device == "cuda"

    def wants(self, item: str) -> bool:
        """Return whether an item is among those asked for."""
        return not self.options.items or any(part in item for part in self.options.items)

    def left(self) -> float:
        """Return the seconds left to this stage."""
        return self._end - time.monotonic()

    def item(self, name: str, work: Callable[[], Mapping[str, Any]], *, least: float = 0.0) -> None:
        """Do one item and keep its result; a failure is kept too, and ends nothing else."""
        if not self.wants(name):
            return
        if self.left() < least:
            reason = f"{max(0.0, self.left()):.0f} s left, at least {least:.0f} needed"
            self.report.add(name, state=NOT_RUN, reason=reason)
            return
        began = time.monotonic()
        try:
            values = {"state": OK, **work()}
        except SkippedError as error:
            values = {"state": NOT_RUN, "reason": str(error)}
        except Exception as error:
            traceback.print_exc()
            values = {"state": FAILED, "reason": f"{type(error).__name__}: {error}"[:600]}
        self.report.add(name, **values, seconds=round(time.monotonic() - began, 1))
        print(f"{name}: {json.dumps(self.report.items[name], default=str)[:400]}", flush=True)

    def items_at_once(self, works: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
        """Do items side by side on a card, one after another on a CPU."""
        if not self.on_gpu:
            for name, work in works.items():
                self.item(name, work)
            return
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            for future in [pool.submit(self.item, name, work) for name, work in works.items()]:
                future.result()

    def start(self, name: str, module: str, arguments: Sequence[str], *, on_cpu: bool = False) -> Child:
        """Start `python -m MODULE ARGUMENTS` in the folder of the packed data, with a process group of its own.

        On a CPU the process is forked from this one, which has imported everything by then: the imports take longer
        than a tiny run. A card's context does not survive a fork.
        """
        log = self.work / f"{name}.log"
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if on_cpu or not self.on_gpu else {}
        if self.on_gpu:
            with log.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    cwd=self.options.data,
                    env={**os.environ, **hidden},
                    stdout=file,
                    stderr=file,
                    process_group=0,
                )
            return Child(name, process.pid, log, poll=process.poll)
        pid = _forked(module, arguments, log=log, folder=self.options.data)
        return Child(name, pid, log, poll=lambda: _poll_forked(pid))

    def finish(self, *children: Child) -> None:
        """Wait for children that are to end by themselves within this stage's time.

        Raises:
            OutOfTimeError: One was killed as the time is over.
            RuntimeError: One failed.
        """
        for child in children:
            code = child.wait(self.left())
            if code is None:
                raise OutOfTimeError(f"{child.name} was killed as the stage's time was over")
            if code:
                raise RuntimeError(f"{child.name} ended with {code}: {last_line(child.log)}")


class Child:
    """A child process that leads a process group."""

    def __init__(self, name: str, pid: int, log: Path, *, poll: Callable[[], int | None]) -> None:
        self.name = name
        self.pid = pid
        self.log = log
        self.code: int | None = None
        self._poll = poll

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.code is None:
            self.code = self._poll()
        return self.code

    def wait(self, seconds: float) -> int | None:
        """Wait for the end and return the exit code; kill the child after some seconds and return None."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                return None
            time.sleep(0.05)
        return self.code

    def kill(self) -> None:
        """Kill the child and its group, if it still runs, and wait until its memory is free."""
        if self.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.02)


def _poll_forked(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _forked(module: str, arguments: Sequence[str], *, log: Path, folder: str) -> int:
    entry = [importlib.import_module(name) for name in (*IMPORTED_BY_RUNS, module)][-1]
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        with suppress(PermissionError):  # the child has done it already
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)
        code = entry.main(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
