"""A step's time by kind of work, from the events of torch.profiler.

On a card an event is a kernel or a copy; on a CPU, an operator without those that it calls.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PROFILED = 12  # the step: after those that are timed, which it would slow
HOST_GAPS = "host gaps"

# The first pattern that a name contains decides; names are compared in lower case. Triton names its kernels after the
# operators that it has fused (triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3): rsqrt marks a norm, exp and
# logsumexp the loss.
KINDS = {
    "communication": r"nccl|gloo|c10d|allreduce|all_reduce",
    "attention": r"flash|fmha|sdpa|scaled_dot_product|attention|softmax_warp",
    "products": r"gemm|nvjet|cutlass|cublas|xmma|splitk|::mm\b|::addmm|::bmm|::matmul|::linear\b|mkldnn|onednn",
    "optimizer": r"adam|multi_tensor|foreach|clip_grad|lpnorm|amp_",
    "loss": r"logsumexp|log_softmax|softmax|cross_entropy|nll_loss|fused.*_exp_|chunk_loss",
    "norms": r"rsqrt|rms_?norm|layer_?norm",
    "copies": r"memcpy|memset|copy|catarray|::cat\b|fill|zero_|::to\b|transpose_copy",
}
OTHER = "other elementwise"


class Event(NamedTuple):
    """Something that the device did, in microseconds."""

    name: str
    start: float
    end: float


def kind_of(name: str) -> str:
    """Return the kind of work of a kernel or operator."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), OTHER)


def by_kind(events: Iterable[Event], *, wall: float) -> dict[str, float]:
    """Return the milliseconds by kind; what is left of the wall time, in seconds, are gaps in which nothing ran."""
    events = list(events)
    sums = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in events:
        sums[kind_of(event.name)] += (event.end - event.start) / 1e3
    return {**sums, HOST_GAPS: max(0.0, 1e3 * wall - busy(events) / 1e3)}


def busy(events: Iterable[Event]) -> float:
    """Return the microseconds in which at least one event ran."""
    total, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        total += max(0.0, event.end - max(event.start, until))
        until = max(until, event.end)
    return total


class Profile:
    """A trace of step PROFILED, written to a file once the step is over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._trace: Any = None
        self._began = 0.0

    def before(self, step: int) -> None:
        """Start before the step that is traced, and write before the next one."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        if step not in (PROFILED, PROFILED + 1):
            return
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.synchronize()
        if step == PROFILED:
            self._trace = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
            self._trace.__enter__()
            self._began = time.perf_counter()
            return
        wall = time.perf_counter() - self._began
        self._trace.__exit__(None, None, None)
        write(self._path, on_card(self._trace) if on_gpu else on_cpu(self._trace), wall=wall)


def on_card(trace: Any) -> list[Event]:
    """Return the kernels and copies of a trace."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]

    events = [event for event in trace.events() if event.device_type == DeviceType.CUDA]
    events = [event for event in events if not getattr(event, "is_user_annotation", False)]  # spans of kernels
    return [Event(event.name, event.time_range.start, event.time_range.end) for event in events]


def on_cpu(trace: Any) -> list[Event]:
    """Return a trace's operators with the time that is their own, one after another."""
    events, now = [], 0.0
    for event in trace.events():
        own = max(0.0, float(event.self_cpu_time_total))
        events.append(Event(event.name, now, now + own))
        now += own
    return events


def write(path: Path, events: list[Event], *, wall: float) -> None:
    """Write the milliseconds by kind, and the names that took most of each, for checking the kinds."""
    longest: dict[str, float] = {}
    for event in events:
        longest[event.name] = longest.get(event.name, 0.0) + (event.end - event.start) / 1e3
    first = sorted(longest.items(), key=lambda pair: -pair[1])[:25]
    names = [{"name": name[:120], "kind": kind_of(name), "ms": round(ms, 3)} for name, ms in first]
    kinds = {kind: round(ms, 3) for kind, ms in by_kind(events, wall=wall).items()}
    text = json.dumps({"wall_ms": round(1e3 * wall, 3), "kinds": kinds, "longest": names})
    temporary = path.with_suffix(".partial")
    temporary.write_text(text)
    temporary.replace(path)


def shares(kinds: Mapping[str, float]) -> dict[str, float]:
    """Return each kind's share of the sum."""
    total = sum(kinds.values()) or 1.0
    return {kind: ms / total for kind, ms in kinds.items()}
