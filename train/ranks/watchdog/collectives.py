"""Trace of the collectives called by this rank, recorded in Python at the entry to torch.distributed.

DeepSpeed and our own code call collectives as attributes of the module, so they are wrapped there; calls made only on
the device or in C++ are not recorded. The trace is kept in shared memory, where other ranks on this machine can read it
even after this one died: gloo aborts a process when the sizes of two ranks do not match.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

# Calls that every member of a group makes in the same order and with the same sizes; hence neither send nor recv.
_COUNTED = (
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
)
_SLOTS, _SLOT_BYTES = 4096, 96  # following one slot for the phase


class Call(NamedTuple):
    """One collective of one rank."""

    number: int  # from 1, counted per process; all ranks make the same calls in the same order
    group: str
    name: str
    numel: int  # elements of its tensors; 0 if it has none

    def __str__(self) -> str:
        """Return a readable description."""
        amount = f" of {self.numel} elements" if self.numel else ""
        return f"{self.name}{amount} (collective {self.number})"

    @property
    def kind(self) -> tuple[str, str, int]:
        """The properties that must match on all ranks."""
        return self.group, self.name, self.numel


class Trace(NamedTuple):
    """The trace of a rank in shared memory."""

    phase: str
    step: int
    calls: list[Call]  # the latest ones, in order


class Collectives:
    """Records this rank's collectives between `install` and `remove`."""

    def __init__(self, path: Path):
        self._path = path
        self._number = 0
        self._waiting: set[int] = set()  # threads inside a call
        self._originals: dict[str, Callable[..., Any]] = {}
        self._descriptor: int | None = None
        self.last: Call | None = None

    def install(self) -> None:
        """Wrap each collective of torch.distributed."""
        try:
            self._path.unlink(missing_ok=True)
            self._descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except OSError:  # `last` works without it
            self._descriptor = None
        for name in _COUNTED:
            original = getattr(dist, name, None)
            if original is not None:
                self._originals[name] = original
                setattr(dist, name, self._counted(name, original))

    def note(self, phase: str, step: int) -> None:
        """Record the phase and step of subsequent calls."""
        self._keep(f"{phase} {step}", slot=0)

    def remove(self, *, forget: bool) -> None:
        """Restore the original functions; with `forget`, delete the trace as well."""
        for name, original in self._originals.items():
            setattr(dist, name, original)
        self._originals = {}
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        if forget:
            self._path.unlink(missing_ok=True)

    def is_waiting(self, thread: int | None) -> bool:
        """Return whether a thread is inside a collective."""
        return thread in self._waiting

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self._originals and not _is_helper_thread():
                self._count(name, (*arguments, *keywords.values()))
            thread = threading.get_ident()
            self._waiting.add(thread)
            try:
                return original(*arguments, **keywords)
            except BaseException as error:
                error.periln_collective = str(self.last)  # type: ignore[attr-defined]  # for failed_in_a_collective
                raise
            finally:
                self._waiting.discard(thread)

        return call

    def _count(self, name: str, arguments: Sequence[Any]) -> None:
        self._number += 1
        self.last = call = Call(self._number, _group_name(arguments)[:24], name, next(_sizes(arguments), 0))
        self._keep(f"{call.number} {call.group} {name} {call.numel}", slot=1 + (call.number - 1) % _SLOTS)

    def _keep(self, text: str, *, slot: int) -> None:
        if self._descriptor is None:
            return
        try:
            os.pwrite(self._descriptor, (text.ljust(_SLOT_BYTES - 1) + "\n").encode(), slot * _SLOT_BYTES)
        except OSError:  # shared memory is full
            self._descriptor = None


def failed_in_a_collective(error: BaseException) -> bool:
    """Return whether an error was raised inside a collective."""
    return hasattr(error, "periln_collective")


def trace_path(run_folder: Path, rank: int) -> Path:
    """Return the trace file of a rank on this machine; in memory, so that no file system can delay a step."""
    memory = Path("/dev/shm")
    folder = memory if memory.is_dir() else Path(tempfile.gettempdir())
    run = hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:16]
    return folder / f"periln-{os.getuid()}-{run}-{rank:05d}"


def read_trace(path: Path) -> Trace | None:
    """Return the trace of a rank on this machine, dead or alive; None if there is none."""
    try:
        head, *lines = path.read_text().splitlines()
        phase, step = head.split()
        return Trace(phase, int(step), sorted(_calls(lines)))
    except (OSError, ValueError):
        return None


def _calls(lines: Iterable[str]) -> Iterator[Call]:
    for line in lines:
        fields = line.split()
        if len(fields) == 4 and fields[0].isdigit() and fields[3].isdigit():
            yield Call(int(fields[0]), fields[1], fields[2], int(fields[3]))


def _is_helper_thread() -> bool:
    """Return whether this thread works alongside training, in no fixed order; autograd threads do not count."""
    thread = threading.current_thread()
    return thread is not threading.main_thread() and not isinstance(thread, threading._DummyThread)


def _group_name(arguments: Sequence[Any]) -> str:
    group = next((value for value in arguments if isinstance(value, dist.ProcessGroup)), None) or dist.group.WORLD
    return getattr(group, "group_name", "") or "?"


def _sizes(arguments: Sequence[Any]) -> Iterator[int]:
    """Yield the number of elements of each tensor, or list of tensors, among the arguments."""
    for value in arguments:
        if isinstance(value, Tensor):
            yield value.numel()
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            yield sum(tensor.numel() for tensor in value)
