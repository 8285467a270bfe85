"""The image filters of the benchmark at 640 x 480: FDKN and DKN, ours and the plain way.

Plain is what their equations say without a second thought, with the same networks: a window unfolded for each pixel
and read by grid_sample, and DKN's sixteen shifted passes (tests/modeling/joint_filter/plain_filter.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

HEIGHT, WIDTH = 480, 640


class FilterArm(NamedTuple):
    """What is measured."""

    architecture: str
    training: bool = False  # forward and backward; else forward alone, in evaluation
    plain: bool = False


FILTER_ARMS = {
    "fdkn": FilterArm("fdkn"),
    "fdkn, plain": FilterArm("fdkn", plain=True),
    "fdkn step": FilterArm("fdkn", training=True),
    "fdkn step, plain": FilterArm("fdkn", training=True, plain=True),
    "dkn": FilterArm("dkn"),
    "dkn, plain": FilterArm("dkn", plain=True),
    "dkn step": FilterArm("dkn", training=True),
}
RATIOS = (
    ("fdkn, plain", "fdkn"),
    ("fdkn step, plain", "fdkn step"),
    ("dkn, plain", "dkn"),
    ("dkn", "fdkn"),  # 17 in the paper, on a Titan Xp
    ("dkn step", "fdkn step"),
)


def filter_pass(arm: FilterArm, device: Any, *, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Callable[[], None]:
    """Return one pass over a random image of a height and width: what is to be timed."""
    import torch

    from modeling.joint_filter.configuration_dkn import DKNConfig
    from modeling.joint_filter.modeling_dkn import DKNModel
    from tests.modeling.joint_filter.plain_filter import plain_forward

    torch.manual_seed(0)
    model = DKNModel(DKNConfig(architecture=arm.architecture)).to(device).train(arm.training)  # type: ignore[arg-type]
    guidance, target = (torch.rand(1, channels, *size, device=device) for channels in (3, 1))

    def once() -> None:
        with torch.set_grad_enabled(arm.training):
            output = plain_forward(model, guidance, target) if arm.plain else model(guidance, target).output
            if arm.training:
                model.zero_grad()
                (output - target).abs().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return once


def measure_filter(name: str, *, steps: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, float]:
    """Return the median milliseconds of a pass after the first, and the memory that passes take beyond the model.

    Args:
        name: Of FILTER_ARMS.
        steps: As many as the language model's arms take; a twentieth are done here.
        size: Height and width of the image.
    """
    import torch

    from train.observe.throughput import peak_memory_gib

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    once = filter_pass(FILTER_ARMS[name], device, size=size)
    before = peak_memory_gib(device)
    seconds = []
    for _ in range(1 + max(1, steps // 20)):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return {
        "milliseconds": 1e3 * statistics.median(seconds[1:]),
        "peak_memory_gib": peak_memory_gib(device) - before,
    }


def filter_table(rounds: list[dict[str, dict[str, float]]]) -> str:
    """Return the figures as Markdown: medians over the rounds, and the span of each ratio within a round."""
    lines = [f"| filter, {WIDTH} x {HEIGHT} | ms | memory beyond the model, GiB |", "|---|---|---|"]
    for arm in rounds[0]:
        milliseconds, memory = (
            statistics.median(r[arm][figure] for r in rounds) for figure in ("milliseconds", "peak_memory_gib")
        )
        lines.append(f"| {arm} | {milliseconds:,.1f} | {memory:.2f} |")
    lines += ["", "| ratio of times, within a round | median | lowest | highest |", "|---|---|---|---|"]
    for slow, fast in RATIOS:
        if slow in rounds[0] and fast in rounds[0]:
            ratios = [r[slow]["milliseconds"] / r[fast]["milliseconds"] for r in rounds]
            lines.append(
                f"| {slow} / {fast} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |"
            )
    return "\n".join(lines)
