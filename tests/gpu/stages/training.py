"""Stage `training`: Pre-, Peri- and Post-LN with paired seeds, as many seeds as there is time for."""

from __future__ import annotations

import time
from typing import Any

from tests.gpu.bench import Bench, OutOfTimeError, SkippedError
from tests.gpu.runs import folder, rows, small

PLACEMENTS = ("pre", "peri", "post")
STEPS = 500
MOST_SEEDS = 8
RESERVE = 1.3  # a round may take so many times as long as the one before


def run(bench: Bench) -> None:
    """Train one seed of all placements after another."""
    longest = 0.0
    for seed in range(2 if bench.options.tiny else MOST_SEEDS):
        began = time.monotonic()
        bench.item(f"seed {seed}", lambda seed=seed: trained(bench, seed), least=RESERVE * longest)
        longest = max(longest, time.monotonic() - began)


def trained(bench: Bench, seed: int) -> dict[str, Any]:
    """Train the placements side by side on the same samples; return their last validation losses."""
    steps = 3 if bench.options.tiny else STEPS
    settings = [f"seed={seed}", f"task.data.seed={seed}", f"steps={steps}", f"evaluate_every={steps}"]
    settings += [f"checkpoint.every={steps}", "log_every=10"]
    if not bench.options.tiny:
        settings += ["task.data.validation_windows=256"]
    names = {placement: f"{placement}-{seed}" for placement in PLACEMENTS}
    words = {p: small(bench, name, *settings, f"task.model.norm_placement={p}") for p, name in names.items()}
    runs = [bench.start(names[p], "tests.gpu.loops.rank", ["plain", *words[p]]) for p in PLACEMENTS]
    try:
        bench.finish(*runs)
    except OutOfTimeError as error:
        raise SkippedError(f"{error}") from error
    finally:
        for run in runs:
            run.kill()
    losses = {p: rows(folder(bench, name))[-1]["validation_loss"] for p, name in names.items()}
    return {"steps": steps, "validation_loss": losses}
