"""Which collectives this rank has called: counted in Python, on the way into torch.distributed.

DeepSpeed and our own code call them as attributes of the module, so that is where they are counted; what only runs on
the device, or in C++, is not seen. The calls lie in shared memory, where ranks of this machine can read them even
after this one died: gloo ends a process on the spot when the sizes of two ranks do not match.
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

# Calls that every member of a group makes in the same order and with the same sizes; so neither send nor receive.
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
_SLOTS, _SLOT_BYTES = 4096, 96  # after one for the phase


class Call(NamedTuple):
    """One collective of one rank."""

    number: int  # from 1, counted over the whole process; all ranks call the same ones in the same order
    group: str
    name: str
    numel: int  # elements of its tensors; 0 where it has none

    def __str__(self) -> str:
        """Return it as a person would say it."""
        amount = f" of {self.numel} elements" if self.numel else ""
        return f"{self.name}{amount} (collective {self.number})"

    @property
    def kind(self) -> tuple[str, str, int]:
        """What must be the same on all ranks."""
        return self.group, self.name, self.numel


class Trace(NamedTuple):
    """What a rank has kept in shared memory."""

    phase: str
    step: int
    calls: list[Call]  # the last ones, in their order


class Collectives:
    """Counts this rank's collectives, from `install` to `remove`."""

    def __init__(self, path: Path):
        self._path = path
        self._number = 0
        self._waiting: set[int] = set()  # threads inside a call
        self._originals: dict[str, Callable[..., Any]] = {}
        self._descriptor: int | None = None
        self.last: Call | None = None

    def install(self) -> None:
        """Put a counter before each collective of torch.distributed."""
        try:
            self._path.unlink(missing_ok=True)
            self._descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except OSError:  # the last call is known without it
            self._descriptor = None
        for name in _COUNTED:
            original = getattr(dist, name, None)
            if original is not None:
                self._originals[name] = original
                setattr(dist, name, self._counted(name, original))

    def note(self, phase: str, step: int) -> None:
        """Keep what the calls from here on belong to."""
        self._keep(f"{phase} {step}", slot=0)

    def remove(self, *, forget: bool) -> None:
        """Take the counters away; `forget`: and what they have counted."""
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
        def call(*given: Any, **named: Any) -> Any:
            if self._originals and not _is_aside():
                self._count(name, (*given, *named.values()))
            thread = threading.get_ident()
            self._waiting.add(thread)
            try:
                return original(*given, **named)
            except BaseException as error:
                error.periln_collective = str(self.last)  # type: ignore[attr-defined]  # for failed_in_a_collective
                raise
            finally:
                self._waiting.discard(thread)

        return call

    def _count(self, name: str, given: Sequence[Any]) -> None:
        self._number += 1
        self.last = call = Call(self._number, _group_name(given)[:24], name, next(_sizes(given), 0))
        self._keep(f"{call.number} {call.group} {name} {call.numel}", slot=1 + (call.number - 1) % _SLOTS)

    def _keep(self, text: str, *, slot: int) -> None:
        if self._descriptor is None:
            return
        try:
            os.pwrite(self._descriptor, (text.ljust(_SLOT_BYTES - 1) + "\n").encode(), slot * _SLOT_BYTES)
        except OSError:  # shared memory is full
            self._descriptor = None


def failed_in_a_collective(error: BaseException) -> bool:
    """Return whether an error came out of a collective."""
    return hasattr(error, "periln_collective")


def trace_path(run_folder: Path, rank: int) -> Path:
    """Return where a rank of this machine keeps its calls: in memory, so that no file system can hold a step up."""
    memory = Path("/dev/shm")
    folder = memory if memory.is_dir() else Path(tempfile.gettempdir())
    run = hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:16]
    return folder / f"periln-{os.getuid()}-{run}-{rank:05d}"


def read_trace(path: Path) -> Trace | None:
    """Return what a rank of this machine, dead or alive, has kept; None where there is nothing."""
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


def _is_aside() -> bool:
    """Return whether this is a thread that works beside training, in no fixed order; autograd's are not Python's."""
    thread = threading.current_thread()
    return thread is not threading.main_thread() and not isinstance(thread, threading._DummyThread)


def _group_name(given: Sequence[Any]) -> str:
    group = next((value for value in given if isinstance(value, dist.ProcessGroup)), None) or dist.group.WORLD
    return getattr(group, "group_name", "") or "?"


def _sizes(given: Sequence[Any]) -> Iterator[int]:
    """Yield the elements of each tensor, or list of tensors, among the arguments."""
    for value in given:
        if isinstance(value, Tensor):
            yield value.numel()
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            yield sum(tensor.numel() for tensor in value)
