"""Stage `machine`: what is there, which attention runs, and the card's own speeds."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from tests.gpu.bench import Bench
from tests.gpu.loops.profile import on_card

PACKAGES = ("torch", "triton", "deepspeed", "transformers", "datasets", "tokenizers", "numpy")
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
VOCABULARIES = (100_278, 100_288)  # of the real configurations, and its multiple of 64
SIZE = 8192  # of the square product


class Heads(NamedTuple):
    """Attention of a model."""

    model: str
    heads: int
    key_value_heads: int
    width: int


ATTENTIONS = (
    Heads("400m", 8, 8, 128),
    Heads("1.5b", 16, 8, 128),
    Heads("3.2b", 16, 8, 160),
    Heads("3.2b, 20 heads", 20, 10, 128),
)


def run(bench: Bench) -> None:
    """Describe the machine, then time attention, the head's products, copies and a product."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # else deterministic products are refused
    device = torch.device(bench.options.device)
    bench.item("software", software)
    bench.item("card", lambda: card(device))
    for heads in ATTENTIONS:
        for deterministic in (False, True):
            name = f"attention {heads.model}" + (", deterministic" if deterministic else "")
            bench.item(name, lambda heads=heads, strict=deterministic: attention(heads, bench, deterministic=strict))
    for vocabulary in VOCABULARIES:
        bench.item(f"head {vocabulary}", lambda rows=vocabulary: head(rows, bench))
    bench.item("copy", lambda: copy(bench))
    bench.item("product", lambda: product(bench))


def software() -> dict[str, Any]:
    """Return versions, and whether Triton finds a compiler and Python's headers."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "compiler": shutil.which("gcc") or shutil.which("cc"),
        "python_headers": Path(sysconfig.get_paths()["include"], "Python.h").exists(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def card(device: torch.device) -> dict[str, Any]:
    """Return the card's name, memory and clocks; on a CPU the processor's name."""
    if device.type == "cpu":
        return {"name": platform.processor() or platform.machine(), "driver": None}
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    values = dict(zip(QUERY.split(","), (word.strip() for word in done.stdout.split(",")), strict=False))
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "driver": values.get("driver_version"),
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        **{key: value for key, value in values.items() if "." in key},
    }


def attention(heads: Heads, bench: Bench, *, deterministic: bool) -> dict[str, Any]:
    """Return which backend runs for a model's attention, and the speed of forward and backward pass together."""
    batch, length = (1, 32) if bench.options.tiny else (8, 2048)
    shapes = [(batch, n, length, heads.width) for n in (heads.heads, heads.key_value_heads, heads.key_value_heads)]
    device, dtype = bench.options.device, torch.bfloat16
    query, key, value = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes)
    grouped = heads.heads != heads.key_value_heads

    def forward_and_backward() -> None:
        output = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        torch.autograd.grad(output, (query, key, value), torch.ones_like(output))

    with _deterministic(deterministic):
        chosen = torch._fused_sdp_choice(  # type: ignore[attr-defined]
            query, key, value, is_causal=True, enable_gqa=grouped
        )
        ms = milliseconds(forward_and_backward, bench)
        kernel = _longest_kernel(forward_and_backward) if bench.on_gpu else None
    # 4 T^2 K per head, half of it for causality, and 2.5 times as much again in the backward pass
    flops = 3.5 * 2 * batch * heads.heads * length**2 * heads.width
    return {"backend": SDPBackend(chosen).name, "kernel": kernel, "ms": ms, "tflops": flops / ms / 1e9}


def _longest_kernel(work: Callable[[], Any]) -> str:
    """Return the name of the kernel that takes longest: the proof of the backend."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        work()
        torch.cuda.synchronize()
    longest = max(on_card(trace), key=lambda event: event.end - event.start, default=None)
    return longest.name[:160] if longest else "none seen"


@contextmanager
def _deterministic(value: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(value)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def head(vocabulary: int, bench: Bench) -> dict[str, Any]:
    """Return the times of the head's three products: rows that are no multiple of 16 bytes miss the fast kernels."""
    tokens, width, rows = (16, 32, vocabulary // 100) if bench.options.tiny else (2048, 2048, vocabulary)
    device, dtype = bench.options.device, torch.bfloat16
    hidden = torch.randn(tokens, width, device=device, dtype=dtype)
    weight = torch.randn(rows, width, device=device, dtype=dtype)
    gradient = torch.randn(tokens, rows, device=device, dtype=dtype)
    works: dict[str, Callable[[], Any]] = {
        "logits": lambda: hidden @ weight.T,
        "to_hidden": lambda: gradient @ weight,
        "to_weight": lambda: gradient.T @ hidden,
    }
    times = {name: milliseconds(work, bench) for name, work in works.items()}
    flops = 3 * 2 * hidden.numel() * rows
    return {**{f"{name}_ms": ms for name, ms in times.items()}, "tflops": flops / sum(times.values()) / 1e9}


def copy(bench: Bench) -> dict[str, Any]:
    """Return the bandwidth of a copy on the device; reading and writing both count."""
    source = torch.randn(2**16 if bench.options.tiny else 2**30, device=bench.options.device)
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source), bench)
    return {"tb_per_second": 2 * source.numel() * 4 / ms / 1e9}


def product(bench: Bench) -> dict[str, Any]:
    """Return the speed of a square bf16 product."""
    size = 64 if bench.options.tiny else SIZE
    left, right = (torch.randn(size, size, device=bench.options.device, dtype=torch.bfloat16) for _ in range(2))
    ms = milliseconds(lambda: left @ right, bench)
    return {"size": size, "tflops": 2 * size**3 / ms / 1e9}


def milliseconds(work: Callable[[], Any], bench: Bench, *, repeats: int = 10) -> float:
    """Return the mean time of some work after a warm-up: by events on a card, by the clock on a CPU."""
    work()
    if not bench.on_gpu:
        began = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - began)
    work()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()  # type: ignore[call-arg]
    for _ in range(repeats):
        work()
    last.record()  # type: ignore[call-arg]
    torch.cuda.synchronize()
    return first.elapsed_time(last) / repeats
