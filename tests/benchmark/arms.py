"""The arms of the benchmark: our program, Hugging Face's Trainer, and hand-written loops, on the same windows.

Those of the image filters are in filters.py, of preparing text in preparation.py, of the commands' start in
startup.py.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmark.filters import FILTER_ARMS, measure_filter
from tests.benchmark.preparation import PREPARATION_ARM, measure_preparation
from tests.benchmark.startup import STARTUP_ARM, measure_startup

TIMED_EVERY = 5  # steps: the clock is read as often as a run would log


class Shape(NamedTuple):
    """Model and batch, the same for every arm."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 1024
    layers: int = 6
    heads: int = 4
    sequence_length: int = 256
    batch_size: int = 8

    def describe(self) -> str:
        """Return it in words."""
        return (
            f"{self.layers} layers x {self.hidden_size}, MLP {self.intermediate_size}, vocabulary {self.vocab_size}, "
            f"{self.batch_size} x {self.sequence_length} tokens"
        )


# probes.activations_every and gradients_every of our arms; at "default" their key is not written.
PROBES: dict[str, dict[str, int | None] | None] = {
    "off": {"activations_every": None, "gradients_every": None},
    "default": None,
    "every second step": {"activations_every": 2, "gradients_every": 2},
}


def config_of(
    shape: Shape, folder: Path, *, steps: int, placement: str, compiled: bool, probes: str = "default"
) -> Any:
    """Return our run of this shape on the embedded corpus."""
    import yaml

    from train.config.load import load

    tree = {
        "name": f"{placement}-{compiled}-{time.time_ns()}",
        "output_dir": str(folder / "runs"),
        "steps": steps,
        "global_batch_size": shape.batch_size,
        "micro_batch_size": shape.batch_size,
        "log_every": TIMED_EVERY,
        "evaluate_every": 10 * steps,
        "task": {
            "kind": "language_model",
            "model": {
                "norm_placement": placement,
                "vocab_size": shape.vocab_size,
                "hidden_size": shape.hidden_size,
                "intermediate_size": shape.intermediate_size,
                "num_hidden_layers": shape.layers,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.heads,
                "max_position_embeddings": shape.sequence_length,
            },
            "data": {
                "sources": ["python-stdlib"],
                "tokenizer": "byte-bpe",
                "sequence_length": shape.sequence_length,
                "validation_windows": 8,
            },
        },
        "optim": {"lr": 1e-3},
        "engine": {"precision": "fp32", "zero_stage": 0, "compile": compiled},  # one rank: nothing to share out
        "checkpoint": {"every": 10 * steps},
    }
    if PROBES[probes] is not None:
        tree |= {"probes": PROBES[probes], "log_every": 1}
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load(path)


def ours(shape: Shape, steps: int, folder: Path, *, placement: str, compiled: bool) -> list[float]:
    """Run `python -m train`'s own path and read the seconds per step from metrics.jsonl."""
    from train.__main__ import train

    config = config_of(shape, folder, steps=steps, placement=placement, compiled=compiled)
    assert train(config) == 0
    rows = map(json.loads, (Path(config.output_dir) / config.name / "metrics.jsonl").read_text().splitlines())
    return [row["step_seconds"] for row in rows if "loss" in row]


def probed(shape: Shape, steps: int, folder: Path, *, probes: str, compiled: bool) -> dict[str, float]:
    """Return the median seconds of a step that is measured and of one that is not, of the same Peri-LN run.

    Steps of both kinds alternate, so that whatever slows the machine slows both; the first third is not counted.
    """
    from train.__main__ import train

    config = config_of(shape, folder, steps=steps, placement="peri", compiled=compiled, probes=probes)
    assert train(config) == 0
    lines = (Path(config.output_dir) / config.name / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row and steps // 3 < row["step"] < steps]
    return {
        kind: statistics.median(row["step_seconds"] for row in rows if row["step"] % 2 == odd)
        for kind, odd in (("measured", 0), ("unmeasured", 1))
    }


def windows(shape: Shape, steps: int, folder: Path) -> Iterator[np.ndarray]:
    """Yield the batches that our own run sees, in its order."""
    from train.data.order import SampleOrder
    from train.data.text import cache

    config = config_of(shape, folder, steps=steps, placement="pre", compiled=False)
    data = cache.prepare(config.task.data, vocab_size=shape.vocab_size)
    order = SampleOrder(data.num_training_samples, seed=0, global_batch_size=shape.batch_size)
    for step in range(1, steps + 1):
        yield data.read("training", order.of_step(step))


def llama(shape: Shape) -> Any:
    """Return transformers' Llama of this shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=shape.sequence_length,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )


def by_hand(shape: Shape, steps: int, folder: Path, *, compiled: bool) -> list[float]:
    """Train Llama in a plain loop: the whole model compiled, or not; fused AdamW; clipping."""
    import torch

    model = llama(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model, dynamic=False) if compiled else model
    seconds, start = [], time.perf_counter()
    for step, batch in enumerate(windows(shape, steps, folder), 1):
        tokens = torch.from_numpy(batch)
        # The window's own tokens as labels, shifted inside: one target fewer than ours per window.
        loss = forward(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % TIMED_EVERY == 0:
            loss.item()
            seconds.append((time.perf_counter() - start) / TIMED_EVERY)
            start = time.perf_counter()
    return seconds


def trainer(shape: Shape, steps: int, folder: Path) -> list[float]:
    """Train Llama with Hugging Face's Trainer."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % TIMED_EVERY == 0:
                seconds.append((time.perf_counter() - self.start) / TIMED_EVERY)
                self.start = time.perf_counter()

    rows = [
        {"input_ids": torch.from_numpy(row[:-1]), "labels": torch.from_numpy(row[:-1])}
        for batch in windows(shape, steps, folder)
        for row in batch
    ]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=shape.batch_size,
        learning_rate=1e-3,
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_steps=TIMED_EVERY,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    Trainer(model=llama(shape), args=arguments, train_dataset=rows, callbacks=[Clock()]).train()  # type: ignore[arg-type]
    return seconds


ARMS: dict[str, Callable[[Shape, int, Path], list[float]]] = {
    "hand-eager": lambda *given: by_hand(*given, compiled=False),
    "ours-pre": lambda *given: ours(*given, placement="pre", compiled=False),
    "ours-peri": lambda *given: ours(*given, placement="peri", compiled=False),
    "hf-trainer": lambda *given: trainer(*given),
    "hand-compiled": lambda *given: by_hand(*given, compiled=True),
    "ours-pre-compiled": lambda *given: ours(*given, placement="pre", compiled=True),
    "ours-peri-compiled": lambda *given: ours(*given, placement="peri", compiled=True),
}


# blocks, probes -> median seconds of steps by their kind
PROBE_ARMS: dict[str, Callable[[Shape, int, Path], dict[str, float]]] = {
    f"{blocks}, probes {probes}": functools.partial(probed, probes=probes, compiled=blocks == "compiled")
    for blocks in ("eager", "compiled")
    for probes in ("off", "every second step")
}


def main() -> None:
    """Run one arm, described as JSON on the command line, and print its figures as JSON."""
    given = json.loads(sys.argv[1])
    if given["arm"] == STARTUP_ARM:
        print(json.dumps(measure_startup()))
        return
    if given["arm"] == PREPARATION_ARM:
        print(json.dumps(measure_preparation(Path(given["folder"]))))
        return
    import torch

    from train.observe.throughput import peak_memory_gib

    shape = Shape(**given["shape"])
    if given["arm"] in PROBE_ARMS:
        print(json.dumps(PROBE_ARMS[given["arm"]](shape, given["steps"], Path(given["folder"]))))
        return
    if given["arm"] in FILTER_ARMS:
        print(json.dumps(measure_filter(given["arm"], steps=given["steps"])))
        return
    seconds = ARMS[given["arm"]](shape, given["steps"], Path(given["folder"]))
    counted = seconds[len(seconds) // 3 :]
    tokens = shape.batch_size * shape.sequence_length
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures = {
        "tokens_per_second": tokens / statistics.median(counted),
        "peak_memory_gib": peak_memory_gib(device),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
