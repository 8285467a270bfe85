"""`python -m tests.gpu.table DIR`: the results of the GPU script as Markdown, for docs/experiments.md.

Copes with stages and items that failed, were not run, or were cut off.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu import report
from tests.gpu.loops.profile import shares
from train.config.facts.hardware import peak_flops

Item = Mapping[str, Any]
Items = Mapping[str, Item]
LONGEST_REASON = 200  # characters
RATIOS = (  # of tokens/s: name, numerator, denominator
    ("Peri-LN / Pre-LN, 1.5b", "1.5b peri", "1.5b pre"),
    ("periln / hand-written loop, 1.5b", "1.5b peri", "1.5b peri, hand-written loop"),
    ("20 heads of 128 / 16 of 160, 3.2b", "3.2b peri, 20 heads of 128", "3.2b peri"),
    ("periln / Trainer, 400m", "400m peri", "400m peri, Trainer"),
)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables of a folder and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.table", description="Results as Markdown.")
    parser.add_argument("folder", metavar="DIR", help="the --out of python -m tests.gpu")
    folder = Path(parser.parse_args(arguments).folder)
    if not any(folder.glob("*.json")):
        parser.error(f"{folder} holds no results of python -m tests.gpu")
    print(table(folder))
    return 0


def table(folder: Path) -> str:
    """Return a heading with date and machine, what went wrong, and a section for each stage that left results."""
    stages = {name: report.read(folder / f"{name}.json") for name in SECTIONS}
    results = {name: stage for name, stage in stages.items() if stage is not None}
    good = {name: _good(stage) for name, stage in results.items()}
    parts = [heading(good.get("machine", {})), *failures(results)]
    for name, section in SECTIONS.items():
        if good.get(name):
            parts += [f"### {name.capitalize()}", *filter(None, section(good[name]))]
    if "speed" in good:
        card = good.get("machine", {}).get("card", {}).get("name", "")
        parts += list(_formula(card))
    return "\n\n".join(parts)


def _good(stage: Mapping[str, Any]) -> dict[str, Item]:
    return {name: item for name, item in stage.get("items", {}).items() if item.get("state") == report.OK}


def heading(machine: Items) -> str:
    """Return the heading: date, card, driver, versions."""
    software, card = machine.get("software", {}), machine.get("card", {})
    packages = software.get("packages", {})
    versions = [f"{name} {version}" for name, version in packages.items() if version]
    line = [
        f"driver {card.get('driver') or 'unknown'}",
        *versions[:1],
        f"CUDA {software.get('cuda') or 'none'}",
        f"cuDNN {software.get('cudnn') or 'none'}",
        *versions[1:],
    ]
    if "memory_gib" in card:
        line.insert(0, f"{card['memory_gib']:.1f} GiB")
    return f"## {software.get('date', 'Date unknown')}: python -m tests.gpu, {card.get('name', 'card unknown')}\n\n" + (
        ", ".join(line) + "."
    )


def failures(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a list of all that failed, was not run or was cut off, with the reasons."""
    lines = []
    for name, stage in results.items():
        state = stage.get("state", report.RUNNING)
        if state != report.OK:
            state = "cut off" if state == report.RUNNING else state
            lines.append(f"- {name}: {state}" + (f" ({stage['reason']})" if stage.get("reason") else ""))
        for item, values in stage.get("items", {}).items():
            if values.get("state") != report.OK:
                reason = textwrap.shorten(values.get("reason", "no reason given"), LONGEST_REASON)
                lines.append(f"- {name}, {item}: {values.get('state')} ({reason})")
    lines += [f"- {name}: no results" for name in SECTIONS if name not in results]
    if lines:
        yield "Failed or not run:"
        yield "\n".join(lines)


def _machine(items: Items) -> Iterator[str]:
    attention = {name.partition(" ")[2]: item for name, item in items.items() if name.startswith("attention")}
    yield _markdown(
        ("attention, forward and backward", "backend", "ms", "TFLOP/s"),
        [(name, a["backend"], f"{a['ms']:.2f}", f"{a['tflops']:.0f}") for name, a in attention.items()],
    )
    heads = {name.partition(" ")[2]: item for name, item in items.items() if name.startswith("head")}
    products = ("logits_ms", "to_hidden_ms", "to_weight_ms")
    yield _markdown(
        ("vocabulary, 2,048 tokens x 2,048", "logits, ms", "to hidden, ms", "to weight, ms", "TFLOP/s"),
        [(f"{int(n):,}", *(f"{h[p]:.2f}" for p in products), f"{h['tflops']:.0f}") for n, h in heads.items()],
    )
    if "copy" in items:
        yield f"Copy on the device: {items['copy']['tb_per_second']:.2f} TB/s, read and written."
    if "product" in items:
        size = items["product"]["size"]
        yield f"bf16 product of {size} x {size}: {items['product']['tflops']:.0f} TFLOP/s."


def _correctness(items: Items) -> Iterator[str]:
    rows = [(name, ", ".join(_figures(item))) for name, item in items.items()]
    yield _markdown(("check", "result"), rows)


def _figures(item: Item) -> Iterator[str]:
    for key, value in item.items():
        if key in ("state", "seconds"):
            continue
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            yield f"{name}: " + "; ".join(f"{part} {_figure(number)}" for part, number in value.items())
        else:
            yield f"{name}: {_figure(value)}"


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return " -> ".join(_figure(part) for part in value) if len(value) == 2 else " ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _speed(items: Items) -> Iterator[str]:
    columns = ("run", "batch x tokens", "tokens/s", "range", "MFU", "peak GiB", "plan GiB", "plan's error", "start s")
    yield _markdown(columns, [_speed_row(name, item) for name, item in items.items()])
    ratios = [
        (name, f"{items[above]['tokens_per_second'] / items[below]['tokens_per_second']:.3f}")
        for name, above, below in RATIOS
        if above in items and below in items
    ]
    if ratios:
        yield _markdown(("ratio of tokens/s", ""), ratios)
    for name, item in items.items():
        if "profile" in item:
            profile = item["profile"]
            rows = [
                (kind, f"{profile['kinds'][kind]:.1f}", f"{100 * share:.1f} %")
                for kind, share in shares(profile["kinds"]).items()
            ]
            yield _markdown((f"a step of {name}, {profile['wall_ms']:.0f} ms", "ms", "share"), rows)


def _speed_row(name: str, item: Item) -> tuple[str, ...]:
    label = f"{name}{', recomputes' if item['recomputes'] else ''}"
    if item.get("attention"):
        attention = item["attention"]
        label += f" ({attention.get('backend') if isinstance(attention, Mapping) else attention})"
    planned = item.get("plan_allocated_gib")
    return (
        label,
        f"{item['micro_batch_size']} x {item['accumulation']} x {item['sequence_length']:,}",
        f"{item['tokens_per_second']:,.0f}",
        f"{item['slowest']:,.0f} to {item['fastest']:,.0f}",
        f"{100 * item['mfu']:.1f} %" if item["mfu"] is not None else "-",
        f"{item['peak_gib']:.1f}",
        f"{planned:.1f}" if planned else "-",
        f"{100 * (planned / item['peak_gib'] - 1):+.0f} %" if planned else "-",
        f"{item['seconds_to_first_step']:.0f}",
    )


def _formula(card: str) -> Iterator[str]:
    peak = peak_flops(card)
    named = f"{peak / 1e12:.0f} TFLOP/s, dense bf16" if peak else f"unknown for {card or 'this card'}: no MFU"
    yield (
        f"MFU = tokens/s x (6 N_matmul + 6 L d T) / peak; peak {named}. Peak and plan GiB are what torch's allocator "
        "has given out; the plan is `python -m launch plan` without context and margin. Initial weights are drawn on "
        "the card. The hand-written loop has bf16 weights and gradients and fp32 masters; the Trainer fp32 weights and "
        "bf16 autocast; both have our model, its compiled blocks and torch's fused AdamW."
    )


def _cost(items: Items) -> Iterator[str]:
    yield _markdown(
        ("run", "measured step, ms", "unmeasured, ms", "cost at every step", "at the default interval"),
        [
            (
                name,
                f"{item['measured_step_ms']:.1f}",
                f"{item['unmeasured_step_ms']:.1f}",
                f"{100 * item['cost_of_a_measured_step']:.1f} %",
                f"{100 * item['cost_at_the_default_interval']:.2f} % (every {item['default_interval']})",
            )
            for name, item in items.items()
        ],
    )


def _filters(items: Items) -> Iterator[str]:
    timed = {name: item for name, item in items.items() if "milliseconds" in item}
    yield _markdown(
        ("filter", "ms", "memory beyond the model, GiB"),
        [(name, f"{item['milliseconds']:.2f}", f"{item['peak_memory_gib']:.2f}") for name, item in timed.items()],
    )
    for name, item in items.items():
        if "relative_difference" in item:
            yield f"{name} ({item['size']}): differs from the CPU's by {item['relative_difference']:.1e}, relative."
    if "training" in items:
        yield f"Training of depth upsampling: {items['training']['last_step_ms']:.0f} ms a step."


def _training(items: Items) -> Iterator[str]:
    placements = list(next(iter(items.values()))["validation_loss"])
    rows = [
        (name, *(f"{item['validation_loss'][placement]:.4f}" for placement in placements))
        for name, item in items.items()
    ]
    if len(items) > 1:
        means = [statistics.mean(item["validation_loss"][p] for item in items.values()) for p in placements]
        rows.append(("mean", *(f"{mean:.4f}" for mean in means)))
    steps = next(iter(items.values()))["steps"]
    yield _markdown((f"validation loss after {steps} steps", *placements), rows)


SECTIONS: dict[str, Callable[[Items], Iterator[str]]] = {
    "machine": _machine,
    "correctness": _correctness,
    "speed": _speed,
    "cost": _cost,
    "filters": _filters,
    "training": _training,
}


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, empty without rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(line)} |" for line in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


if __name__ == "__main__":
    sys.exit(main())
