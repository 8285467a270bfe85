"""Training throughput: seconds per step, samples per second, MFU, peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from train.config.facts import hardware
from train.ranks.distributed import World, gather_floats
from train.tasks.task import SampleCost


def peak_flops(device: torch.device) -> float | None:
    """Return a device's dense bf16 peak in FLOP/s, None if it is unknown, as for any CPU."""
    return hardware.peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_memory_gib(device: torch.device) -> float:
    """Return this rank's peak memory so far: GPU allocations, or the resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stopwatch:
    """Measures the time of training steps, excluding evaluation and saving."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a new interval."""
        self._start, self._paused, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside the context."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def seconds_per_step(self) -> float:
        """Return the mean time per step in the interval."""
        return (time.perf_counter() - self._start - self._paused) / max(1, self.steps)


def speed(
    seconds: float, *, cost: SampleCost, global_batch_size: int, world: World, hosts: Sequence[str]
) -> dict[str, float | str | None]:
    """Return the throughput metrics of a step; `seconds` is this rank's mean, `hosts` lists the host of each rank.

    MFU counts 6 operations per matrix parameter and token, and attention once: see `flops_per_token` of the model.
    """
    over_ranks = gather_floats(seconds)
    slowest = max(over_ranks)
    samples = global_batch_size / slowest
    peak = peak_flops(world.device)
    return {
        "samples_per_second": samples,
        **({"tokens_per_second": samples * cost.tokens} if cost.tokens is not None else {}),
        "mfu": samples * cost.flops / (peak * world.size) if peak is not None and cost.flops is not None else None,
        "step_seconds": sum(over_ranks) / len(over_ranks),
        "step_seconds_min": min(over_ranks),
        "step_seconds_max": slowest,
        "slowest_host": hosts[over_ranks.index(slowest)],
        "peak_memory_gib": max(gather_floats(peak_memory_gib(world.device))),
    }
