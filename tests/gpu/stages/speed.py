"""Stage `speed`: tokens/s, MFU and peak memory of the real models, beside the plan's memory and other training loops.

MFU is tokens/s x (6 N_matmul + 6 L d T) / peak, as in metrics.jsonl. Runs are killed: the last step of one that ends by
itself saves tens of GB.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from launch.plan.memory import GIB, case_of, memory
from tests.gpu.bench import Bench, SkippedError
from tests.gpu.profile import PROFILED
from tests.gpu.runs import folder, large, loaded, rows, train_until
from tests.gpu.stage import last_line
from train.config.batch import micro_batches

WARM_UP = 3  # steps that are not counted
LEAST_STEPS = 3  # below so many counted steps there is no figure


class Arm(NamedTuple):
    """A run to be timed."""

    name: str
    config: str
    micro: int
    batch: int
    settings: tuple[str, ...] = ()
    length: int = 1  # index among the packed sequence lengths
    seconds: float = 80.0  # bound
    least: float = 45.0  # with less left, it is not started
    peer: str | None = None  # hand | trainer: another loop than ours
    profiled: bool = False


PERI, PRE = "task.model.norm_placement=peri", "task.model.norm_placement=pre"
TWENTY_HEADS = ("task.model.num_attention_heads=20", "task.model.num_key_value_heads=10")
STORED = "engine.activation_checkpointing=false"  # 3.2b recomputes its activations as configured
ARMS = (
    Arm("1.5b peri", "1.5b", 8, 32, (PERI,), seconds=100, profiled=True),
    Arm("1.5b pre", "1.5b", 8, 32, (PRE,)),
    Arm("3.2b peri", "3.2b", 8, 16, (PERI,)),
    Arm("3.2b peri, no recomputation", "3.2b", 2, 16, (PERI, STORED)),
    Arm("1.5b peri, hand-written loop", "1.5b", 8, 32, (PERI,), peer="hand"),
    Arm("3.2b peri, longest windows", "3.2b", 1, 4, (PERI,), length=2),
    Arm("3.2b peri, 20 heads of 128", "3.2b", 8, 16, (PERI, *TWENTY_HEADS)),
    Arm("400m peri", "400m", 16, 64, (PERI,)),
    Arm("400m peri, Trainer", "400m", 16, 64, (PERI,), peer="trainer"),
)


def run(bench: Bench) -> None:
    """Time the arms in order of worth."""
    for arm in ARMS:
        bench.item(arm.name, lambda arm=arm: timed(bench, arm), least=arm.least if bench.on_gpu else 0.0)


def timed(bench: Bench, arm: Arm) -> dict[str, Any]:
    """Time one arm: of a peer, the steps that it writes; of ours, the rows of metrics.jsonl."""
    name = arm.name.replace(",", "").replace(" ", "-")
    settings = [_tiny_heads(setting) if bench.options.tiny else setting for setting in arm.settings]
    words = large(bench, arm.config, name, *settings, micro=arm.micro, batch=arm.batch, length=arm.length)
    sizes = _sizes(words)
    if arm.peer:
        return {**sizes, **_peer(bench, arm, name, words)}
    plan = planned(words)
    _require_memory(bench, plan["plan_gib"])
    file = bench.work / f"{name}.profile.json"
    changes = f"drawn_on_card,profiled={file}" if arm.profiled else "drawn_on_card"

    def enough(found: list[dict[str, Any]]) -> bool:
        return len(found) >= PROFILED - 1 and (not arm.profiled or file.exists())

    found, first = train_until(bench, name, words, changes=changes, until=enough, seconds=arm.seconds)
    profile = {"profile": json.loads(file.read_text())} if file.exists() else {}
    environment = json.loads((folder(bench, name) / "environment.json").read_text())
    facts = {"seconds_to_first_step": first, "attention": environment.get("attention")}
    return {**sizes, **steady(found), **plan, **facts, **profile}


def _tiny_heads(setting: str) -> str:
    """Return 20 and 10 heads as 4 and 2, which a tiny model has room for."""
    return setting.replace("heads=20", "heads=4").replace("heads=10", "heads=2")


def _sizes(words: Sequence[str]) -> dict[str, Any]:
    config = loaded(words)
    micro, accumulation = micro_batches(config, 1)
    return {
        "micro_batch_size": micro,
        "accumulation": accumulation,
        "sequence_length": config.task.data.sequence_length,  # type: ignore[union-attr]
        "zero_stage": config.engine.zero_stage,
        "recomputes": config.engine.activation_checkpointing,
    }


def steady(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the counted steps.

    Raises:
        RuntimeError: There are too few.
    """
    counted = [row for row in found if WARM_UP < row["step"] < PROFILED]
    if len(counted) < LEAST_STEPS:
        raise RuntimeError(f"only {len(found)} steps in time; at least {WARM_UP + LEAST_STEPS} are needed")
    speeds = [row["tokens_per_second"] for row in counted]
    shares = [row["mfu"] for row in counted if row["mfu"] is not None]
    return {
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "mfu": statistics.median(shares) if shares else None,
        "peak_gib": counted[-1]["peak_memory_gib"],
        "counted_steps": len(counted),
    }


def planned(words: Sequence[str]) -> dict[str, float]:
    """Return `launch plan`'s peak, and the part of it that torch's allocator sees: without context and margin."""
    config = loaded(words)
    found = memory(config, case_of(config, gpus=1, micro_batch_size=micro_batches(config, 1)[0]))
    return {
        "plan_gib": found.peak / GIB,
        "plan_allocated_gib": (found.peak - found.context - found.margin) / GIB,
    }


def _require_memory(bench: Bench, gib: float) -> None:
    if bench.on_gpu:
        there = torch.cuda.get_device_properties(0).total_memory / 2**30
        if gib > there:
            raise SkippedError(f"launch plan: {gib:.0f} GiB of {there:.0f}")


def _peer(bench: Bench, arm: Arm, name: str, words: Sequence[str]) -> dict[str, Any]:
    assert arm.peer is not None
    found, first = _steps_of_peer(bench, arm.peer, name, words, seconds=arm.seconds)
    return {**steady(found), "seconds_to_first_step": first, "peer": arm.peer}


def _steps_of_peer(
    bench: Bench, peer: str, name: str, words: Sequence[str], *, seconds: float
) -> tuple[list[dict[str, Any]], float]:
    run: Path = folder(bench, name)
    run.mkdir(parents=True)
    end = time.monotonic() + min(seconds, bench.left())
    child = bench.start(name, "tests.gpu.peers", [peer, str(run), *words])
    try:
        while time.monotonic() < end and child.poll() is None:
            time.sleep(0.05)
    finally:
        child.kill()
    found = rows(run)
    if child.code not in (0, -9):
        raise RuntimeError(f"{name} ended with {child.code}: {last_line(child.log)}")
    return found, found[0]["seconds_since_start"] if found else 0.0
