"""Stage `speed`: tokens/s, MFU and peak memory of the real models, beside the plan's memory and other training loops.

MFU is tokens/s x (6 N_matmul + 6 L d T) / peak, as in metrics.jsonl. Runs are killed: the last step of one that ends by
itself saves tens of GB.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.plan.case import case_of
from launch.plan.memory import GIB, memory
from tests.gpu.bench import Bench, Child, SkippedError
from tests.gpu.loops.profile import PROFILED
from tests.gpu.runs import folder, large, loaded, train_until
from train.config.batch import micro_batches

WARM_UP = 3  # steps that are not counted
FILLED = 0.97  # of a card's memory: the plan may be a little too low
LEAST_STEPS = 3  # below so many counted steps there is no figure


class Arm(NamedTuple):
    """A run to be timed."""

    name: str
    config: str
    micro: int  # halved until the plan fits the card
    batch: int
    settings: tuple[str, ...] = ()
    length: int = 1  # index among the packed sequence lengths
    seconds: float = 85.0  # bound
    least: float = 45.0  # with less left, it is not started
    peer: str | None = None  # hand | trainer: another loop than ours
    profiled: bool = False


PERI, PRE = "task.model.norm_placement=peri", "task.model.norm_placement=pre"
TWENTY_HEADS = ("task.model.num_attention_heads=20", "task.model.num_key_value_heads=10")
# As configured, 3.2b recomputes its activations, at a stage for many GPUs: on one, stage 1 moves fewer bytes.
STORED = ("engine.activation_checkpointing=false", "engine.zero_stage=1")
ARMS = (
    Arm("1.5b peri", "1.5b", 8, 32, (PERI,), seconds=100, profiled=True),
    Arm("1.5b pre", "1.5b", 8, 32, (PRE,)),
    Arm("3.2b peri", "3.2b", 8, 16, (PERI,), seconds=110, least=70),
    Arm("3.2b peri, no recomputation", "3.2b", 8, 16, (PERI, *STORED), seconds=110, least=70),
    Arm("1.5b peri, hand-written loop", "1.5b", 8, 32, (PERI,), peer="hand"),
    Arm("3.2b peri, longest windows", "3.2b", 1, 4, (PERI,), length=2, seconds=110, least=70),
    Arm("3.2b peri, 20 heads of 128", "3.2b", 8, 16, (PERI, *TWENTY_HEADS), seconds=110, least=70),
    Arm("400m peri", "400m", 16, 64, (PERI,)),
    Arm("400m peri, Trainer", "400m", 16, 64, (PERI,), peer="trainer"),
)


class Held(NamedTuple):
    """An arm whose process has started, and waits for a file before it touches the card."""

    arm: Arm
    name: str
    words: list[str]
    child: Child
    go: Path


def run(bench: Bench) -> None:
    """Time the arms in order of worth; each one's imports overlap with the arm before."""
    arms = [arm for arm in ARMS if bench.wants(arm.name)]
    held = hold(bench, arms[0]) if arms else None
    for arm, following in zip(arms, [*arms[1:], None], strict=True):
        assert held is not None
        now, held = held, hold(bench, following) if following else None
        bench.item(arm.name, lambda now=now: timed(bench, now), least=arm.least if bench.on_gpu else 0.0)
        now.child.kill()  # where it was not run


def hold(bench: Bench, arm: Arm) -> Held:
    """Start an arm's process."""
    name = arm.name.replace(",", "").replace(" ", "-")
    settings = [_tiny_heads(setting) if bench.options.tiny else setting for setting in arm.settings]
    words = fitting(
        [
            large(bench, arm.config, name, *settings, micro=arm.micro >> halved, batch=arm.batch, length=arm.length)
            for halved in range(arm.micro.bit_length())
        ],
        gib=card_gib(bench),
    )
    go = bench.work / f"{name}.go"
    if arm.peer:
        folder(bench, name).mkdir(parents=True)
        child = bench.start(name, "tests.gpu.loops.peers", [arm.peer, str(go), str(folder(bench, name)), *words])
    else:
        changes = [f"after={go}", "drawn_on_card", *([f"profiled={_profile_of(bench, name)}"] * arm.profiled)]
        child = bench.start(name, "tests.gpu.loops.rank", [",".join(changes), *words])
    return Held(arm, name, words, child, go)


def timed(bench: Bench, held: Held) -> dict[str, Any]:
    """Let an arm train, and return its figures from metrics.jsonl."""
    plan = {} if held.arm.peer else planned(held.words)
    if plan.get("plan_gib", 0.0) > card_gib(bench):
        raise SkippedError(f"launch plan: {plan['plan_gib']:.0f} GiB of {card_gib(bench):.0f}")
    run, profile = folder(bench, held.name), _profile_of(bench, held.name)

    def enough(found: list[dict[str, Any]]) -> bool:
        return len(found) >= PROFILED - 1 and (not held.arm.profiled or profile.exists())

    held.go.touch()
    found, first = train_until(held.child, run, until=enough, seconds=min(held.arm.seconds, bench.left()))
    figures = {**_sizes(held.words), **steady(found), **plan, "seconds_to_first_step": first}
    if profile.exists():
        figures["profile"] = json.loads(profile.read_text())
    if held.arm.peer:
        return {**figures, "peer": held.arm.peer}
    return {**figures, "attention": json.loads((run / "environment.json").read_text()).get("attention")}


def _profile_of(bench: Bench, name: str) -> Path:
    return bench.work / f"{name}.profile.json"


def fitting(candidates: Sequence[list[str]], *, gib: float) -> list[str]:
    """Return the first words whose plan leaves some of the card's memory free; the last if none does."""
    return next((words for words in candidates if planned(words)["plan_gib"] <= FILLED * gib), candidates[-1])


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


def card_gib(bench: Bench) -> float:
    """Return the card's memory in GiB, of which asking torch would take some."""
    if not bench.on_gpu:
        return float("inf")
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[0]) / 1024
