"""Division of this machine's cores and GPUs among the concurrent members of a sweep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from launch.local import gpu_names
from launch.sweep.sweep_file import Sweep


class Slot(NamedTuple):
    """The cores and GPUs assigned to one member."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]  # names as in CUDA_VISIBLE_DEVICES; empty if there are none

    def describe(self) -> str:
        """Return the GPUs, or else the cores, as text."""
        cores = f"core{'s' * (len(self.cores) > 1)} {','.join(map(str, self.cores))}"
        return f"GPU{'s' * (len(self.gpus) > 1)} {','.join(self.gpus)}" if self.gpus else cores


def shares(sweep: Sweep, parallel: int | None) -> list[Slot]:
    """Divide cores and GPUs among concurrent members.

    Args:
        sweep: The sweep; if neither it nor the command line sets `parallel`, the default is one rank per GPU, or per
            two cores.
        parallel: Value from the command line; takes precedence over the sweep's.
    """
    cores, devices = sorted(os.sched_getaffinity(0)), gpu_names()
    fitting = len(devices) // sweep.ranks if devices else len(cores) // (2 * sweep.ranks)
    count = parallel or sweep.parallel or max(1, fitting)
    return [Slot(_share(cores, slot, count), _gpu_share(devices, slot, sweep.ranks)) for slot in range(count)]


def _share(cores: Sequence[int], slot: int, slots: int) -> tuple[int, ...]:
    if slots >= len(cores):  # at least as many members as cores: one core each, possibly shared
        return (cores[slot % len(cores)],)
    return tuple(cores[slot * len(cores) // slots : (slot + 1) * len(cores) // slots])


def _gpu_share(devices: Sequence[str], slot: int, ranks: int) -> tuple[str, ...]:
    if not devices:
        return ()
    return tuple(devices[(slot * ranks + n) % len(devices)] for n in range(min(ranks, len(devices))))
