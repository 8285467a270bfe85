"""Self-contained Hugging Face folders written from checkpoints.

Such a folder loads with `AutoModelForCausalLM.from_pretrained(OUT, trust_remote_code=True)` with only torch and
transformers installed: it contains the weights as safetensors, the model's own source files, the tokenizer, a
generation config and a model card with the run's metrics.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from train.checkpoint.checkpoint import CheckpointReader
from train.config.errors import ConfigError
from train.config.facts.run_layout import CHECKPOINTS, complete_steps, step_name
from train.config.load import read_run
from train.config.run import RunConfig
from train.data import summary
from train.data.budget import number_of_epochs
from train.tasks.task import Task

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_model_folder(
    task: Task, source: Path, out: Path, *, dtype: torch.dtype, card: str | None = None
) -> PreTrainedModel:
    """Write a checkpoint as a Hugging Face folder, atomically.

    Args:
        task: The task, which builds the model and saves its assets.
        source: The checkpoint folder.
        out: The folder to write; must be empty or not exist.
        dtype: Type of the weights on disk.
        card: Text of README.md.

    Returns:
        The model in fp32, on the CPU.
    """
    model = load_model(task, source)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.config.dtype = dtype
    model.save_pretrained(partial, state_dict=state)
    task.save_assets(partial)
    if card is not None:
        (partial / "README.md").write_text(card)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return model


def load_model(task: Task, source: Path) -> PreTrainedModel:
    """Return a task's model with the weights and buffers of a checkpoint, in fp32 on the CPU."""
    reader = CheckpointReader(source)
    model = task.build_model()
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reader.whole("weight", name))
        buffers = dict(model.named_buffers())
        for name, value in reader.buffers().items():
            buffers[name].copy_(value)
    return model


def chosen_checkpoint(run: Path, step: int | None) -> Path:
    """Return the folder of a run's checkpoint for a step, the newest by default.

    Raises:
        ConfigError: There is no such checkpoint.
    """
    folder = run / CHECKPOINTS
    steps = complete_steps(folder)
    if not steps:
        raise ConfigError([f"{run}: has no complete checkpoint"])
    if step is not None and step not in steps:
        raise ConfigError(
            [f"--step {step}: {run} has no such checkpoint; available steps: {', '.join(map(str, steps))}"]
        )
    return folder / step_name(steps[-1] if step is None else step)


def model_card(task: Task, config: RunConfig, run: Path, step: int) -> str:
    """Return the README of an exported model: description, usage, and the run's last metrics."""
    card = task.card()
    head = ["library_name: transformers", *([f"pipeline_tag: {card.pipeline_tag}"] if card.pipeline_tag else [])]
    metrics = last_metrics(run, step)
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:,.6g} |" for name, value in metrics.items())
    optim, environment = config.optim, _environment(run)
    data = "".join(f"- {line.strip()}\n" for line in summary.lines(environment.get("data", {})))
    lines = "\n".join([*head, f"tags: [{', '.join(card.tags)}]"])
    trained = f"{step:,} of {config.steps:,} steps of {config.global_batch_size} samples"
    return f"""---
{lines}
---

# {config.name}

{card.summary} Trained for {trained}{_amount(metrics, environment)}.

```python
{card.usage}
```

| metric | value |
|---|---|
{rows}

Data: {card.data}. Peak learning rate {optim.lr:g}, weight decay {optim.weight_decay:g}, seed {config.seed}.

{data}"""


def _environment(run: Path) -> dict[str, Any]:
    """Return the contents of environment.json, empty if there is none."""
    path = run / "environment.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _amount(metrics: Mapping[str, float], environment: Mapping[str, Any]) -> str:
    """Return the epochs so far and the tokens per parameter in words, as far as they are known."""
    words = [number_of_epochs(metrics["epoch"])] if "epoch" in metrics else []
    if "tokens" in metrics and environment.get("parameters"):
        words.append(f"{metrics['tokens'] / environment['parameters']:.3g} tokens per parameter")
    return f" ({', '.join(words)})" if words else ""


def last_metrics(run: Path, step: int) -> dict[str, float]:
    """Return the last training and validation metrics of a run, up to a step."""
    metrics: dict[str, Any] = {}
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        row: Mapping[str, Any] = json.loads(line)
        if row["step"] <= step:
            metrics |= row
    names = ["step", "tokens", "epoch", "loss", *(name for name in metrics if name.startswith("validation_"))]
    return {name: metrics[name] for name in names if metrics.get(name) is not None}


def continuation(folder: Path, prompt: str, *, tokens: int = 80) -> str:
    """Load an exported folder as any user would and return its continuation of a prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.manual_seed(0)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=True, top_k=40, temperature=0.8)
    return tokenizer.decode(output[0], skip_special_tokens=True)


def export(run: Path, out: Path, *, step: int | None = None, dtype: str = "fp32") -> int:
    """Export a run's checkpoint and return its step.

    Raises:
        ConfigError: RUN is not a run folder, has no such checkpoint, or OUT is in use.
        CheckpointError: The checkpoint is damaged.
    """
    from train.tasks import build_task

    config = read_run(run)
    source = chosen_checkpoint(run, step)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError([f"{out}: exists and is not an empty folder; choose another, or delete it"])
    out.parent.mkdir(parents=True, exist_ok=True)
    saved_step, task = CheckpointReader(source).progress.step, build_task(config)
    if dtype == "bf16" and not task.supports_bf16:
        raise ConfigError([f"--dtype bf16: {config.task.kind} models run in fp32 only; write --dtype fp32, or omit it"])
    write_model_folder(task, source, out, dtype=DTYPES[dtype], card=model_card(task, config, run, saved_step))
    return saved_step
