"""Other training loops with our model: `python -m tests.gpu.loops.peers hand|trainer GO FOLDER CONFIG [key=value ...]`.

`hand`     a plain loop: bf16 weights with fp32 masters, bf16 gradients, fused AdamW, our compiled blocks
`trainer`  Hugging Face's Trainer: fp32 weights, bf16 autocast, fused AdamW, our compiled blocks

Both wait for the file GO, take the model, the windows and the batch of our own run, and write FOLDER/metrics.jsonl with
the rows that the speed stage reads. After that many steps they wait to be killed, as our own run is.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling.decoder.facts_counts_periln import flops_per_token
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from tests.gpu.loops.profile import PROFILED
from tests.gpu.loops.rank import wait_for
from train.config.batch import micro_batches
from train.config.load import load
from train.config.run import RunConfig
from train.config.tasks.language_model import LanguageModelConfig
from train.data.order import SampleOrder
from train.data.text import cache
from train.observe.throughput import peak_flops, peak_memory_gib
from train.tasks.language_model import decoder

STEPS = PROFILED - 1


def main(arguments: list[str]) -> int:
    """Train with the named loop."""
    peer, go, run, file, *overrides = arguments
    wait_for(Path(go))
    config = load(file, overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    PEERS[peer](config, device, Clock(config, device, Path(run)))
    signal.pause()
    return 0


class Clock:
    """Writes a row after each step."""

    def __init__(self, config: RunConfig, device: torch.device, run: Path) -> None:
        self._file = (run / "metrics.jsonl").open("w")
        self._device = device
        task = task_of(config)
        self._tokens = config.global_batch_size * task.data.sequence_length
        self._flops = flops_per_token(DecoderShape.of(task.model), task.data.sequence_length)
        self._last = time.perf_counter()
        self._step = 0

    def tick(self) -> None:
        """Wait for the device and write the step that has just ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._step += 1
        speed = self._tokens / (now - self._last)
        peak = peak_flops(self._device)
        row = {
            "step": self._step,
            "tokens_per_second": speed,
            "mfu": speed * self._flops / peak if peak else None,
            "peak_memory_gib": peak_memory_gib(self._device),
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._last = now


def task_of(config: RunConfig) -> LanguageModelConfig:
    """Return the task, which is a language model here."""
    assert isinstance(config.task, LanguageModelConfig)
    return config.task


def built(config: RunConfig, device: torch.device) -> PeriLNForCausalLM:
    """Return our decoder, initialized on the device."""
    torch.manual_seed(config.seed)
    with device:
        model = decoder(task_of(config))
    if config.engine.compile:
        model.compile_blocks()
    return model.train()


def windows(config: RunConfig) -> Iterator[Tensor]:
    """Yield the global batch of each step, (B, T + 1), in the order of our own run."""
    task = task_of(config)
    packed = cache.prepare(task.data, vocab_size=task.model.vocab_size)
    order = SampleOrder(packed.num_training_samples, seed=task.data.seed, global_batch_size=config.global_batch_size)
    for step in range(1, STEPS + 1):
        yield torch.from_numpy(packed.read("training", order.of_step(step)))


def by_hand(config: RunConfig, device: torch.device, clock: Clock) -> None:
    """Train in a plain loop."""
    model = built(config, device)
    parameters = list(model.parameters())
    masters = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:  # buffers stay in fp32, as with our engine
        parameter.data = parameter.data.bfloat16()
    optim = config.optim
    optimizer = torch.optim.AdamW(
        masters, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), weight_decay=optim.weight_decay, fused=True
    )
    micro, _ = micro_batches(config, 1)
    for batch in windows(config):
        targets = batch[:, 1:].numel()
        for tokens in batch.to(device, non_blocking=True).split(micro):
            model(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], num_items_in_batch=targets).loss.backward()
        for master, parameter in zip(masters, parameters, strict=True):
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, optim.gradient_clipping or float("inf"))
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(parameters, masters)  # type: ignore[attr-defined, arg-type]
        model.zero_grad(set_to_none=True)
        clock.tick()


def by_trainer(config: RunConfig, device: torch.device, clock: Clock) -> None:
    """Train with Hugging Face's Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Ticking(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    micro, accumulation = micro_batches(config, 1)
    batches = list(windows(config))
    samples = [{"input_ids": row[:-1], "labels": row[:-1]} for batch in batches for row in batch]
    arguments = TrainingArguments(
        output_dir=str(config.folder / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        max_grad_norm=config.optim.gradient_clipping or 0.0,
        optim="adamw_torch_fused",
        bf16=True,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
    )
    model = built(config, device)
    Trainer(model=model, args=arguments, train_dataset=samples, callbacks=[Ticking()]).train()  # type: ignore[arg-type]


PEERS = {"hand": by_hand, "trainer": by_trainer}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
