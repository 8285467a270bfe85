"""Random small configurations: what `--check` accepts must train three steps; what it refuses, it explains.

`python -m tests.faults.random_configs --count 300 --second-stages 60` prints what was refused and why, and every
configuration that passed the check and then failed; a test takes a dozen. Everything follows from the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import yaml

from modeling.decoder.facts_periln import ACTIVATIONS
from modeling.decoder.facts_placements_periln import CHOICES, PLACEMENTS
from modeling.decoder.facts_rope_periln import ROPE_KEYS
from tests.tiny import tiny_config, write_corpus
from tests.tiny_filter import tiny_filter_config
from train.__main__ import main as train_main
from train.config.run import RunConfig
from train.config.setting import Entry, entries, is_union
from train.ranks import distributed

STEPS = 3
CLOSE = 1e-5  # relative: between ZeRO stages only the order of sums differs
KINDS = ("language_model", "language_model", "language_model", "depth_upsampling", "texture_removal")
# Beyond these, single steps are so large that the rounding of sums, which differs between ZeRO stages, is amplified.
_SMALL_LR = 0.01
# Values that cost memory or time, or that name something on disk, are drawn from here alone.
ORDINARY: dict[str, list[Any]] = {
    "global_batch_size": [1, 2, 3, 4, 6],
    "micro_batch_size": [1, 2, 3, 8],
    "task.model.vocab_size": [257, 300, 333, 512],
    "task.model.vocab_size_multiple": [1, 2, 64, 100],
    "task.model.hidden_size": [4, 8, 24, 32, 48, 50],
    "task.model.intermediate_size": [1, 7, 32, 64],
    "task.model.num_hidden_layers": [1, 2, 3, 4],
    "task.model.num_attention_heads": [1, 2, 3, 4],
    "task.model.num_key_value_heads": [1, 2, 3, 4],
    "task.model.head_dim": [None, None, 2, 6, 8, 16],
    "task.model.hidden_act": list(ACTIVATIONS),
    "task.model.max_position_embeddings": [16, 32, 33, 64],
    "task.model.dyt_alpha": [0.5, 0.5, 0.1, 2.0],
    "task.model.residual_factor": [1.0, 0.5, 0.1, 2.0],
    "task.data.sequence_length": [1, 2, 16, 31, 32],
    "task.data.num_workers": [1],
    "task.data.crop": [None, 16, 24, 32],
    "task.data.scale": [2, 3, 4, 8],
    "task.model.kernel_size": [1, 3, 5],
    "task.model.window_size": [3, 5, 9, 15],
    "task.model.guidance_channels": [3],
    "task.model.target_channels": [1],
    "task.iterations": [1, 2, 4],
    "task.shown_images": [0, 1, 2],
    "task.attention": ["sdpa", "eager", "eager", "flash_attention_2"],
    "engine.zero_stage": [0, 1, 2, 3],
    "engine.precision": ["fp32", "fp32", "fp32", "auto", "bf16"],
    "engine.compile": [False],
    "engine.threads": [1],
    "engine.gradient_dtype": ["fp32", "fp32", "fp32", "fp32", "bf16"],
    "optim.lr": [1e-4, 1e-3, _SMALL_LR, _SMALL_LR, 1e-12, 0.3, 20.0],
    "optim.betas": [[0.9, 0.95], [0.0, 0.0], [0.99, 0.999], [0.5, 0.999999]],
    "optim.schedule": ["cosine", "linear", "warmup_stable_decay", "constant", "step", "poly"],
    "optim.warmup": [0, 0.0, 0.1, 1, 2, 0.99],
    "checkpoint.every": [1, 2, 100],
    "checkpoint.weights_every": [None, 1, 2],
    "optim.decay_every": [None, None, 1, 2],
    "optim.decay_factor": [None, None, 0.5],
    "optim.decay": [None, None, 0.3, 1],
    "optim.poly_power": [None, None, 0.9, 2.0],
    "optim.momentum": [None, None, 0.9, 0.99],
}
# Switches of the decoder that are drawn more often than its other settings.
SWITCHES: dict[str, list[Any]] = {
    "norm_kind": ["layernorm", "dyt"],
    "qk_norm": ["head", "projection"],
    "embedding_norm": [True],
    "residual_factor": [0.5],
    "gpas": [True],
    "attention_gate": ["head", "element"],
    "initializer_scheme": ["depth_scaled"],
    "frozen_norm_scales": ["output", "all"],
}
FIXED = re.compile(
    r"name|steps|output_dir|log_every|evaluate_every|task\.kind|task\.data\.(sources|validation_sources|tokenizer|cache_dir)"
    r"|task\.model\.(norm_placement|rope_parameters)|checkpoint\.start_from|watchdog\..*|checkpoint\.stop_deadline"
)


@dataclass
class Outcome:
    """What came of all configurations."""

    trained: int = 0
    compared: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list[str])


def draw(chance: random.Random, folder: Path) -> dict[str, Any]:
    """Return a random configuration: ordinary values, and now and then one from the end of its range."""
    kind = chance.choice(KINDS)
    tree = cast("dict[str, Any]", tiny_config(folder) if kind == "language_model" else tiny_filter_config(folder, kind))
    tree.update(steps=STEPS, evaluate_every=chance.choice([1, 2, 500]))
    changeable = [entry for entry in _entries_of(kind) if not FIXED.fullmatch(entry.path)]
    for entry in chance.sample(changeable, chance.randint(0, len(changeable) // 3)):
        _set(tree, entry.path, _value(chance, entry, extreme=chance.random() < 0.04))
    if kind == "language_model":
        _draw_decoder(chance, tree["task"], folder)
    tree["engine"].setdefault("threads", 1)
    return tree


def _entries_of(kind: str) -> Iterator[Entry]:
    """Yield the settings of a run of this kind, without sections and without entries of lists of sections."""
    own_task = False
    for entry in entries(RunConfig):
        if entry.path == "task.kind":
            own_task = kind in get_args(entry.type)
        elif not entry.is_section and ".0." not in entry.path and (own_task or not entry.path.startswith("task.")):
            yield entry


def _draw_decoder(chance: random.Random, task: dict[str, Any], folder: Path) -> None:
    model = task["model"]
    names = list(PLACEMENTS)
    layers = model["num_hidden_layers"]
    model["norm_placement"] = chance.choice([*CHOICES, [chance.choice(names) for _ in range(layers)]])
    for switch in chance.sample(list(SWITCHES), chance.choice([0, 1, 1, 2, 3])):
        model[switch] = chance.choice(SWITCHES[switch])
    if chance.random() < 0.5:
        kind = chance.choice(list(ROPE_KEYS))
        needed, allowed = ROPE_KEYS[kind]
        keys = [*needed, *chance.sample(allowed, chance.randint(0, len(allowed)))]
        numbers = [0.5, 1, 1.0, 1.5, 2, 4.0, 16, 32, 1e4]
        parameters = {key: chance.choice([True, False] if key == "truncate" else numbers) for key in keys}
        model["rope_parameters"] = {"rope_type": kind, "rope_theta": chance.choice([1e4, 5e5, 2, 1]), **parameters}
    task["data"]["sources"] = [chance.choice(_sources(folder))]


def _sources(folder: Path) -> list[Any]:
    table = {"path": str(folder / "texts/documents.csv"), "text_column": "text"}
    lines = {"path": str(folder / "texts/documents.txt"), "document_separator": ""}
    return [str(folder / "corpus/*.txt"), str(folder / "texts/documents.jsonl"), table, lines]


def _value(chance: random.Random, entry: Entry, *, extreme: bool) -> Any:
    if entry.path in ORDINARY:
        return chance.choice(ORDINARY[entry.path])
    kinds = [kind for kind in (get_args(entry.type) if is_union(entry.type) else (entry.type,))]
    kind = chance.choice(kinds)
    if kind is type(None):
        return None
    if kind is bool:
        return chance.random() < 0.5
    if get_origin(kind) is Literal:
        return chance.choice(get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return [_number(chance, entry, part, extreme=extreme) for part in inner if part is not Ellipsis]
    return _number(chance, entry, kind, extreme=extreme) if kind in (int, float) else entry.field.default


def _number(chance: random.Random, entry: Entry, kind: type, *, extreme: bool) -> float | int:
    """Return a number around the default or, if extreme, from an end of the range."""
    facts = entry.setting
    low = facts.at_least if facts.at_least is not None else facts.above
    high = facts.at_most if facts.at_most is not None else facts.below
    low, high = 0.0 if low is None else low, (low or 0) + 1e6 if high is None else high
    if extreme:
        ends = [low, high, math.nextafter(low, math.inf), math.nextafter(high, -math.inf), 1e30, 1e-30]
        value = chance.choice(ends)
    else:
        value = chance.choice(
            [low + (min(high, low + 1) - low) * chance.random(), min(high, low + chance.randint(1, 9))]
        )
    return int(value) if kind is int else float(value)


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def run(tree: Mapping[str, Any], folder: Path, name: str, *arguments: str) -> tuple[int, str]:
    """Run `python -m train` in this process; return the exit code and what it printed, 70 for an exception."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**tree, "name": name}))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = train_main([str(path), *arguments])
        except Exception:
            return 70, said.getvalue() + traceback.format_exc()
    return code, said.getvalue()


def try_one(number: int, seed: int, folder: Path, outcome: Outcome, *, second_stage: bool) -> None:
    """Draw configuration `number`, check it, train it if it passes, and once more at another ZeRO stage."""
    chance = random.Random(f"{seed} {number}")
    tree, name = draw(chance, folder), f"random-{number}"
    code, said = run(tree, folder, name, "--check")
    if code == 2:
        outcome.refused.update({_kind_of(line) for line in said.strip().splitlines()})
        return
    losses = _train(tree, folder, name, code, said, outcome)
    outcome.trained += losses is not None
    is_rounded = tree["engine"].get("precision", "auto") == "bf16" or tree["optim"]["lr"] > _SMALL_LR
    if losses is None or not second_stage or is_rounded:
        return
    other = copy.deepcopy(tree)
    stages = [stage for stage in (0, 1, 2, 3) if stage != tree["engine"].get("zero_stage", 1)]
    other["engine"]["zero_stage"] = chance.choice(stages)
    code, said = run(other, folder, f"{name}-again", "--check")
    if code == 2:  # bf16 gradients at stage 0 and the like
        return
    again = _train(other, folder, f"{name}-again", code, said, outcome)
    outcome.compared += again is not None
    if again is not None and not _close(losses, again):
        outcome.failures.append(f"{name}: {losses} became {again} at stage {other['engine']['zero_stage']}: {tree}")


def _train(
    tree: Mapping[str, Any], folder: Path, name: str, code: int, said: str, outcome: Outcome
) -> list[float | None] | None:
    """Train a configuration whose check ended with `code`; return its losses, or None and note the failure."""
    if code == 0:
        code, said = run(tree, folder, name)
    if code != 0 or "Traceback" in said:
        outcome.failures.append(f"{name}: exit code {code}\n{yaml.safe_dump(dict(tree))}\n{said[-3000:]}")
        return None
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def _close(first: list[float | None], second: list[float | None]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(
        a == b or (None not in (a, b) and math.isclose(cast("float", a), cast("float", b), rel_tol=CLOSE))
        for a, b in pairs
    )


def _kind_of(line: str) -> str:
    """Return a message with its numbers and names left out, so that equal reasons are counted together."""
    return re.sub(r"-?\d[\d.,e+-]*", "N", re.sub(r"\[.*?\]|'.*?'|/\S+", "...", line))[:150]


def prepare(folder: Path) -> None:
    """Write the texts that the configurations read, and let the runs of this process share one process group."""
    distributed.stop = lambda: None  # DeepSpeed keeps the group of its first run
    write_corpus(folder / "corpus")
    texts = [path.read_text().strip() for path in sorted((folder / "corpus").glob("*.txt"))]
    (folder / "texts").mkdir()
    (folder / "texts/documents.txt").write_text("\n\n".join(texts))
    (folder / "texts/documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "texts/documents.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))


def main() -> int:
    """Try as many configurations as asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.random_configs")
    parser.add_argument("--count", type=int, default=300, help="configurations to train")
    parser.add_argument("--second-stages", type=int, default=60, help="of these, trained at a second ZeRO stage too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcome, number = Outcome(), 0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        prepare(folder)
        while outcome.trained + len(outcome.failures) < options.count:
            before = len(outcome.failures)
            second_stage = outcome.compared < options.second_stages
            try_one(number, options.seed, folder, outcome, second_stage=second_stage)
            number += 1
            for failure in outcome.failures[before:]:
                print(f"FAILED {failure}", flush=True)
    print(f"{number} configurations: {outcome.trained} trained, {outcome.compared} of them at a second stage,")
    print(f"{number - outcome.trained - len(outcome.failures)} refused, {len(outcome.failures)} failed\n")
    for reason, times in outcome.refused.most_common():
        print(f"{times:4} {reason}")
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
