"""Run folders with known numbers: what a report must show can be written down."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from train.config.load import load
from train.config.report_facts import report_facts

ROOT = Path(__file__).parents[2]

# Variance after `depth` blocks at step n: Post stays, Peri is a line, Pre is a line at first and an exponential then.
GROWTH: dict[str, Callable[[float, float], float]] = {
    "post": lambda depth, done: 0.998,
    "peri": lambda depth, done: 1.0 + (2.0 + done) * depth,
    "output": lambda depth, done: 0.2 + 1.5 * depth,
    "pre": lambda depth, done: 0.01 + 0.03 * depth if done == 0 else 0.05 * 2.0 ** (depth * done),
}
TOKENS_PER_STEP = 1024


def config(**changes: Any) -> dict[str, Any]:
    """Return the settings of a run; `a__b=c` changes `a.b`."""
    tree: dict[str, Any] = {
        "name": "run",
        "steps": 40,
        "seed": 0,
        "task": {"kind": "language_model", "model": {"norm_placement": "peri", "num_hidden_layers": 4}},
        "optim": {"lr": 0.003},
        "probes": {"activations_every": 10, "gradients_every": 10},
    }
    for path, value in changes.items():
        *sections, key = path.split("__")
        below = tree
        for section in sections:
            below = below.setdefault(section, {})
        below[key] = value
    return tree


def write_run(
    folder: Path,
    *,
    metrics: Iterable[Mapping[str, Any]] | None = None,
    activations: Iterable[Mapping[str, Any]] | None = None,
    gradients: Iterable[Mapping[str, Any]] | None = None,
    events: Iterable[Mapping[str, Any]] | None = None,
    offset: float = 0.0,
    settings: str | None = None,
    **changes: Any,
) -> Path:
    """Write a language model's run; `offset` is added to its losses, and `[]` leaves a file out.

    `settings` are the text of settings.json; None: those of the task's quickstart.
    """
    tree = config(**{"name": folder.name, **changes})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    facts = setting_facts(tree["task"]["kind"]) if settings is None else settings
    (folder / "settings.json").write_text(facts)
    (folder / "environment.json").write_text(
        json.dumps({"git_sha": "0123456789abcdef", "device": "x86_64", "precision": "fp32", "world_size": 2})
    )
    steps = tree["steps"]
    model = tree["task"].get("model", {})
    layers, placement = model.get("num_hidden_layers"), model.get("norm_placement")
    finish = [{"time": "", "event": "start", "step": 0}, {"time": "", "event": "finish", "step": steps}]
    probed = [1, *range(10, steps + 1, 10)]
    files = {
        "metrics": metric_rows(steps, offset) if metrics is None else metrics,
        "activations": activation_rows(probed, layers, placement) if activations is None else activations,
        "gradients": gradient_rows(probed, layers, placement) if gradients is None else gradients,
        "events": finish if events is None else events,
    }
    for name, rows in files.items():
        if rows := list(rows):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@functools.cache
def setting_facts(kind: str) -> str:
    """Return what a run of a kind of task writes as settings.json."""
    return json.dumps(report_facts(load(ROOT / f"configs/{kind}/quickstart.yaml")))


def metric_rows(steps: int, offset: float = 0.0) -> list[dict[str, Any]]:
    """Return a training row per step, and a validation row every ten."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        seen = {"step": step, "samples": 16 * step, "tokens": TOKENS_PER_STEP * step}
        speed = {"tokens_per_second": 1000.0 + step, "samples_per_second": 4.0, "peak_memory_gib": 1.5}
        rows.append(
            {**seen, "loss": loss_at(step) + offset, "grad_norm": 1.0 / step, "lr": 0.003, "skipped": 0, **speed}
        )
        if step % 10 == 0:
            found = loss_at(step) + offset + 0.1
            rows.append({**seen, "validation_loss": found, "validation_bits_per_byte": found / 3})
    return rows


def loss_at(step: float) -> float:
    """Return the loss of the synthetic runs."""
    return 3.0 + 4.0 / step**0.5


def activation_rows(steps: Iterable[int], layers: int, placement: str) -> list[dict[str, Any]]:
    """Return all sites of a decoder; the stream's variance is GROWTH's, its maximum ten standard deviations."""
    grow, last = GROWTH[placement], max(steps := list(steps))
    rows = []
    for step in steps:
        done = 0.0 if step == 1 else step / last
        rows.append(_site(step, None, "embedding", 0.0004))
        for layer in range(layers):
            for branch, half in (("attention", 0.5), ("mlp", 1.0)):
                rows.append(_site(step, layer, f"{branch}.output", 0.1 * (layer + 1)))
                if placement in ("peri", "output"):
                    rows.append(_site(step, layer, f"{branch}.normed_output", 1.0))
                rows.append(_site(step, layer, f"{branch}.stream", grow(layer + half, done)))
        rows.append(_site(step, None, "final_norm", 1.0))
    return rows


def _site(step: int, layer: int | None, site: str, variance: float) -> dict[str, Any]:
    rms = variance**0.5
    sizes = {"mean_abs": 0.8 * rms, "max_abs": 10 * rms, "rms": rms, "fp16_overflow_share": 0.0}
    place = {"step": step, "layer": layer, "site": site, "numel": 65536}
    return {**place, "variance": variance, **sizes, "top1_over_median": 12.0}


def gradient_rows(steps: Iterable[int], layers: int, placement: str) -> list[dict[str, Any]]:
    """Return two matrices of norm 3 / (l + 1) and 4 / (l + 1) in layer l, an embedding, and output norms' scales."""
    rows = []
    for step in steps:
        rows.append(_parameter(step, None, "model.embed_tokens.weight", 7.0))
        for layer in range(layers):
            at = f"model.layers.{layer}"
            rows.append(_parameter(step, layer, f"{at}.attention.branch.q_proj.weight", 3.0 / (layer + 1)))
            rows.append(_parameter(step, layer, f"{at}.mlp.branch.up_proj.weight", 4.0 / (layer + 1)))
            if placement in ("peri", "output"):
                for branch, mean in (("attention", 0.9), ("mlp", 1.1)):
                    scale = {"scale_min": mean - 0.2, "scale_mean": mean, "scale_max": mean + 0.2}
                    rows.append({**_parameter(step, layer, f"{at}.{branch}.output_norm.weight", 0.0), **scale})
    return rows


def _parameter(step: int, layer: int | None, name: str, norm: float) -> dict[str, Any]:
    place = {"step": step, "layer": layer, "parameter": name, "numel": 1000}
    return {**place, "norm": norm, "parameter_norm": 10.0, "update_ratio": 0.01 / step}


def write_depth_run(folder: Path, **changes: Any) -> Path:
    """Write a vision task's run: samples and no tokens, other validation figures, sites of its own."""
    rows: list[dict[str, Any]] = []
    for step in range(1, 21):
        rows.append({"step": step, "samples": 4 * step, "loss": 1.0 / step, "grad_norm": 0.5, "lr": 0.001})
    rows.append(
        {"step": 20, "samples": 80, "validation_loss": 0.05, "validation_rmse_cm": 2.5, "validation_delta1": 0.9}
    )
    sites = [(None, "stem"), (0, "guide.features"), (1, "guide.features"), (None, "weights")]
    activations = [_site(step, layer, site, 1.0 + i) for step in (1, 20) for i, (layer, site) in enumerate(sites)]
    return write_run(
        folder, metrics=rows, activations=activations, gradients=[], steps=20,
        task={"kind": "depth_upsampling", "model": {"num_hidden_layers": 0, "norm_placement": None}}, **changes,
    )  # fmt: skip


def write_filter_run(
    folder: Path, *, images: Mapping[str, Mapping[str, np.ndarray]] | None = None, better: float = 1.0, **changes: Any
) -> Path:
    """Write a joint filter's run, FDKN unless told otherwise; `better` divides its errors, `images` are its files."""
    rows: list[dict[str, Any]] = []
    for step in range(1, 41):
        rows.append({"step": step, "samples": step, "loss": 1 / step, "grad_norm": 0.5, "lr": 0.001})
        if step % 10 == 0:
            figures = {"loss": 2 / step, "rmse": (3 + 20 / step) / better}
            known = {"bicubic_loss": 0.2, "bicubic_rmse": 4.0, "joint_bilateral_rmse": 3.9, "guided_filter_rmse": 3.8}
            named = {f"validation_{name}": value for name, value in {**figures, **known}.items()}
            rows.append({"step": step, "samples": step, **named})
    task: dict[str, Any] = {
        "kind": "depth_upsampling",
        "model": {"architecture": "fdkn", "residual": True, "sampling": "centered", "window_size": 15},
        "data": {"scale": 8, "unit": "cm", "sources": [{"path": "scenes"}], "validation_sources": [{"path": "scenes"}]},
        "border": 6, "shown_images": 2,
    }  # fmt: skip
    steps, names = (1, 20, 40), filter_modules(stages=6)
    activations = [_site(step, layer, name, 0.1 * (i + 1)) for step in steps for i, (layer, name) in enumerate(names)]
    gradients = [
        _parameter(step, layer, f"{name}.{part}", length * (i + 1))
        for step in steps
        for i, (layer, name) in enumerate(names)
        for part, length in (("weight", 3.0), ("bias", 4.0))
    ]
    files = {"metrics": rows, "activations": activations, "gradients": gradients}
    run = write_run(folder, **{"task": task, **files, **changes})
    for path, arrays in (images or {}).items():
        (run / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(run / "images" / path, allow_pickle=False, **arrays)
    return run


def filter_modules(*, stages: int) -> list[tuple[int | None, str]]:
    """Return layer and name of the modules of two branches: convolutions, every other one normed, and two heads."""
    parts = [
        (i, f"stages.{i}.{part}") for i in range(stages) for part in (("conv", "norm") if i % 2 == 0 else ("conv",))
    ]
    parts = [*parts, (None, "weight_head"), (None, "offset_head")]
    return [(layer, f"kernels.{branch}_branch.{part}") for branch in ("guidance", "target") for layer, part in parts]


def filtered_image(size: tuple[int, int] = (24, 32), *, channels: int = 1, **changes: Any) -> dict[str, Any]:
    """Return the arrays of one validation image: a step of depth, an input off by 0.2 and an output off by 0.1.

    The last two columns are holes. The only chosen pixel is (12, 10); its kernel reads the 3 x 3 taps moved by half a
    pixel to the right, with weights -4/9 ... 4/9.
    """
    height, width = size
    truth = np.zeros((height, width, channels), np.float32)
    truth[:, width // 2 :] = 0.5
    valid = np.ones(size, dtype=bool)
    valid[:, -2:] = False
    taps = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), axis=-1).reshape(1, 9, 2)
    arrays = {
        "guidance": np.full((height, width, 3), 128, np.uint8),
        "input": truth + np.float32(0.2),
        "output": truth - np.float32(0.1),
        "truth": np.where(valid[:, :, None], truth, np.float32(9.0)),
        "valid": valid,
        "units_per_value": np.float32(50.0),
        "unit": np.array("cm"),
        "offset_length": np.full(size, 0.5, np.float16),
        "pixel": np.array([[12, 10]], np.int32),
        "positions": (np.array([12, 10]) + taps + [0, 0.5]).astype(np.float32),
        "weights": ((np.arange(9, dtype=np.float32) - 4) / 9)[None],
    }
    return {**arrays, **changes}
