"""Stage `correctness`: what the CPU tests prove, on a card.

Where a card is compared with the CPU, a CPU in its place must give equal numbers.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.facts_placements_periln import PLACEMENTS
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from tests.gpu.bench import ROOT, Bench, SkippedError
from tests.gpu.loops.rank import POISONED, SAVED
from tests.gpu.runs import folder, loaded, rows, small, training_rows
from tests.gpu.stage import last_line
from train.checkpoint.checkpoint import CheckpointReader

# Largest differences between card and CPU that pass. Of logits: relative to the largest logit. Rounding in another
# order gives about 1e-6 in fp32 and 1e-2 in bf16; a wrong mask or norm, about 1.
LOGITS = {"fp32": 1e-4, "bf16": 5e-2}
LOSSES = {5: 1e-5, 6: 1e-3}  # step -> relative, fp32: with the same weights, and after an update on either side
PROBES = 1e-3  # relative, fp32; of a row's variance or norm, beyond SMALLEST
SMALLEST = 1e-7
GPU_TESTS_SECONDS = 25.0

CHECKPOINTS_KEPT = ["checkpoint.keep=null"]
SHORT = ["steps=12", "optim.warmup=2", "evaluate_every=12"]


def run(bench: Bench) -> None:
    """Compare and train; the items that take longest start first."""
    bench.items_at_once(
        {
            "resume": lambda: resume(bench),
            "checkpoint": lambda: checkpoint(bench),
            "placements": lambda: placements(bench),
            "skipped steps": lambda: skipped_steps(bench),
            "logits": lambda: logits(bench),
            "spread": lambda: spread(bench),
        }
    )
    bench.item("gpu tests", lambda: gpu_tests(bench), least=GPU_TESTS_SECONDS)


def logits(bench: Bench) -> dict[str, Any]:
    """Compare the logits of every placement on the card with those on the CPU, in fp32 and bf16."""
    words = small(bench, "logits")
    shape = asdict(loaded(words).task.model)  # type: ignore[arg-type]
    found = {}
    for placement in PLACEMENTS:
        torch.manual_seed(0)
        model = PeriLNForCausalLM(PeriLNConfig(**{**shape, "norm_placement": placement})).eval()
        tokens = torch.randint(shape["vocab_size"], (2, shape["max_position_embeddings"]))
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            expected, there = (_logits(model, tokens, dtype, device) for device in ("cpu", bench.options.device))
            found[f"{placement} {name}"] = float((there - expected).abs().max() / expected.abs().max())
    for name, difference in found.items():
        _require(difference <= _tolerance(LOGITS[name.split()[1]], bench), f"{name}: logits differ by {difference:.2g}")
    return {"relative_differences": found}


@torch.no_grad()
def _logits(model: nn.Module, tokens: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    return model.to(device, dtype)(input_ids=tokens.to(device)).logits.float().cpu()


def placements(bench: Bench) -> dict[str, Any]:
    """Train every placement in bf16 for some steps: the loss must be finite and fall."""
    named = {f"bf16-{placement}": f"task.model.norm_placement={placement}" for placement in PLACEMENTS}
    settings = [*SHORT, "engine.precision=bf16"]
    _train_in_turn(bench, "placements", {name: small(bench, name, *settings, each) for name, each in named.items()})
    losses = {name: [row["loss"] for row in training_rows(folder(bench, name))] for name in named}
    for name, values in losses.items():
        _require(all(value is not None and math.isfinite(value) for value in values), f"{name}: a loss is not finite")
        _require(values[-1] < values[0], f"{name}: the loss went from {values[0]:.4f} to {values[-1]:.4f}")
    return {"first_and_last_loss": {name: [values[0], values[-1]] for name, values in losses.items()}}


def skipped_steps(bench: Bench) -> dict[str, Any]:
    """Make the loss of a step NaN at every ZeRO stage: it must be logged as skipped and leave the weights as they are.

    Stage 0 in bf16 accumulates gradients in bf16 (docs/decisions/0004-stage-0-bf16.md).
    """
    settings = ["steps=5", "optim.warmup=1", "evaluate_every=5", "checkpoint.every=1", *CHECKPOINTS_KEPT]
    runs = {}
    for stage in range(4):
        extra = ["engine.gradient_dtype=bf16"] if stage == 0 else []
        name = f"poisoned-{stage}"
        runs[name] = small(bench, name, *settings, f"engine.zero_stage={stage}", "engine.precision=bf16", *extra)
    _train_in_turn(bench, "poisoned", runs, changes="poisoned")
    for name in runs:
        events = [event for event in rows(folder(bench, name), "events") if event["event"] == "skip"]
        _require([event["step"] for event in events] == [POISONED], f"{name}: skipped {events}")
        before, after, last = (weights(bench, name, step) for step in (POISONED - 1, POISONED, 5))
        _require(_equal(before, after), f"{name}: the skipped step changed the weights")
        _require(not _equal(after, last), f"{name}: no step after it changed the weights")
        _require(all(bool(weight.isfinite().all()) for weight in last.values()), f"{name}: a weight is not finite")
    return {"stages": [0, 1, 2, 3], "skipped_step": POISONED}


def resume(bench: Bench) -> dict[str, Any]:
    """Kill a deterministic run and start it again: every figure of every step must equal an unbroken run's."""
    settings = [*SHORT, f"checkpoint.every={SAVED}", "engine.deterministic=true", "probes.gradients_every=4"]
    broken, unbroken = small(bench, "broken", *settings), small(bench, "unbroken", *settings)
    killed = bench.start("broken", "tests.gpu.loops.rank", ["killed", *broken])
    whole = bench.start("unbroken", "tests.gpu.loops.rank", ["plain", *unbroken])
    code = killed.wait(bench.left())
    _require(code == -9, f"the run that was to be killed ended with {code}: {last_line(killed.log)}")
    bench.finish(bench.start("resumed", "tests.gpu.loops.rank", ["plain", *broken]), whole)
    resumed = [event["step"] for event in rows(folder(bench, "broken"), "events") if event["event"] == "resume"]
    _require(resumed == [SAVED], f"the run resumed after steps {resumed}, not {SAVED}")
    figures = [_figures(folder(bench, name)) for name in ("broken", "unbroken")]
    _require(figures[0] == figures[1], "the resumed run's figures differ from the unbroken run's")
    return {"killed_after": SAVED, "steps": len(figures[0]["metrics"]), "bit_equal": True}


def _figures(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all that a run logged but times and memory."""
    timed = re.compile(r"second|memory|host|mfu|time")
    return {
        file: [{key: value for key, value in row.items() if not timed.search(key)} for row in rows(run, file)]
        for file in ("metrics", "gradients")
    }


def spread(bench: Bench) -> dict[str, Any]:
    """Measure how far two equal runs without `engine.deterministic` are apart."""
    names = ("free-1", "free-2")
    _train_in_turn(bench, "free", {name: small(bench, name, *SHORT) for name in names})
    first, second = ([row["loss"] for row in training_rows(folder(bench, name))] for name in names)
    return {"largest_loss_difference": max(abs(a - b) for a, b in zip(first, second, strict=True))}


def checkpoint(bench: Bench) -> dict[str, Any]:
    """Take a checkpoint from the CPU to the card and back, and measure the same step on both.

    A run of one more step, at a learning rate of 0, writes the weights that it has read: these must be equal.
    """
    exact = ["steps=6", "optim.warmup=2", "engine.precision=fp32", "engine.deterministic=true", "checkpoint.every=1"]
    exact += [*CHECKPOINTS_KEPT, "evaluate_every=6", "probes.activations_every=1", "probes.gradients_every=1"]
    still = [*exact, "optim.schedule=linear"]  # down to 0 at the last step

    def start_from(name: str, step: int) -> str:
        return f"checkpoint.start_from={folder(bench, name)}@{step}"

    on_cpu = {"cpu": small(bench, "cpu", *exact)}
    _train_in_turn(bench, "cpu", on_cpu, on_cpu=True)
    on_card = {
        "card": small(bench, "card", *exact, start_from("cpu", 4)),
        "card-still": small(bench, "card-still", *still, "steps=5", start_from("cpu", 4)),
    }
    _train_in_turn(bench, "card", on_card)
    back = {
        "back": small(bench, "back", *exact, start_from("card", 5)),
        "back-still": small(bench, "back-still", *still, start_from("card-still", 5)),
    }
    _train_in_turn(bench, "back", back, on_cpu=True)
    saved = weights(bench, "cpu", 4)
    _require(_equal(saved, weights(bench, "card-still", 5)), "the card's weights are not those of the checkpoint")
    _require(_equal(saved, weights(bench, "back-still", 6)), "the weights that came back are not those that left")
    return {**_compared_losses(bench), **_compared_probes(bench)}


def _compared_losses(bench: Bench) -> dict[str, Any]:
    runs = {name: training_rows(folder(bench, name)) for name in ("cpu", "card", "back")}
    losses = {name: {row["step"]: row["loss"] for row in found} for name, found in runs.items()}
    differences = {}
    for name, step in (("card", 5), ("card", 6), ("back", 6)):
        difference = abs(losses[name][step] / losses["cpu"][step] - 1)
        differences[f"{name}, step {step}"] = difference
        _require(difference <= _tolerance(LOSSES[step], bench), f"{name}: loss {step} differs by {difference:.2g}")
    return {"relative_loss_differences": differences}


def _compared_probes(bench: Bench) -> dict[str, Any]:
    found = {}
    for file, place, column in (("activations", "site", "variance"), ("gradients", "parameter", "norm")):
        sides = [
            {
                (row["layer"], row[place]): row[column]
                for row in rows(folder(bench, name), file)
                if row["step"] == 5  # the first on the card, with the weights of step 4 on both sides
            }
            for name in ("cpu", "card")
        ]
        _require(bool(sides[0]) and sides[0].keys() == sides[1].keys(), f"{file}: other rows on the card")
        found[file] = max(abs(sides[1][key] - value) / (abs(value) + SMALLEST) for key, value in sides[0].items())
        _require(found[file] <= _tolerance(PROBES, bench), f"{file}: {column} differs by {found[file]:.2g}")
    return {"relative_probe_differences": found}


def gpu_tests(bench: Bench) -> dict[str, Any]:
    """Run the tests that are marked `gpu`; warnings are none of their concern on another version of torch."""
    if not bench.on_gpu:
        raise SkippedError("needs a card")
    files = [str(path) for path in sorted(ROOT.glob("tests/**/test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-W", "default", "-p", "no:cacheprovider", *files]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=bench.left())
    print(done.stdout[-6000:], done.stderr[-2000:])
    summary = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "")
    _require(done.returncode == 0, f"exit code {done.returncode}: {summary}")
    return {"summary": summary}


# ---------------------------------------------------------------------------------------------------------- helpers


def _train_in_turn(
    bench: Bench, name: str, runs: Mapping[str, list[str]], *, changes: str = "plain", on_cpu: bool = False
) -> None:
    """Train runs one after another in one process."""
    words: list[str] = []
    for each in runs.values():
        words += [*(["--then"] if words else []), changes, *each]
    bench.finish(bench.start(name, "tests.gpu.loops.rank", words, on_cpu=on_cpu))


def weights(bench: Bench, name: str, step: int) -> dict[str, Tensor]:
    """Return the fp32 weights in a run's checkpoint."""
    reader = CheckpointReader(folder(bench, name) / "checkpoints" / f"step_{step:06d}")
    return {parameter: reader.whole("weight", parameter) for parameter in reader.manifest["parameters"]}


def _equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _tolerance(value: float, bench: Bench) -> float:
    return value if bench.on_gpu else 0.0


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
