"""Self-contained Hugging Face folders written from checkpoints.

Such a folder loads with `AutoModelForCausalLM.from_pretrained(OUT, trust_remote_code=True)` with only torch and
transformers installed: it contains the weights as safetensors, the model's own source files, the tokenizer, a
generation config and a model card with the run's metrics.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from modeling.decoder.modeling_periln import PeriLNForCausalLM
from train.checkpoint.checkpoint import CheckpointReader
from train.checkpoint.published import intact_checkpoint
from train.config.errors import ConfigError
from train.tasks.task import Task

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_model_folder(
    task: Task, source: Path, out: Path, *, dtype: torch.dtype, card: Callable[[Path], None] | None = None
) -> PreTrainedModel:
    """Write a checkpoint as a Hugging Face folder, atomically.

    Args:
        task: The task, which builds the model and saves its assets.
        source: The checkpoint folder.
        out: The folder to write; an earlier one is replaced.
        dtype: Type of the weights on disk.
        card: Writes the model card to the folder that it gets.

    Returns:
        The model in fp32, on the CPU.
    """
    model = load_model(task, source)
    if isinstance(model, PeriLNForCausalLM):
        # Without padding rows: clients such as TRL read the matrix of the head, and would count them as tokens.
        model.resize_token_embeddings(model.config.vocab_size)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.config.dtype = dtype
    configs = [model.config, *([model.generation_config] if model.can_generate() else [])]
    for name, value in task.export_settings().items():
        for each in configs:
            setattr(each, name, value)
    with complete_or_absent(out) as folder:
        model.save_pretrained(folder, state_dict=state)
        task.save_assets(folder)
        if card is not None:
            card(folder)
    return model


@contextmanager
def complete_or_absent(out: Path) -> Iterator[Path]:
    """Let a folder be written under another name, and rename it once that succeeded; an earlier one is replaced."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        follow_umask(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(out, ignore_errors=True)  # empty, or weights of a step that is repeated
    partial.rename(out)


def require_free(out: Path) -> None:
    """Create the parent of a folder that is to be written.

    Raises:
        ConfigError: The folder exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError([f"{out}: exists and is not an empty folder; choose another, or delete it"])
    out.parent.mkdir(parents=True, exist_ok=True)


def follow_umask(folder: Path) -> None:
    """Give every file the mode of a new one: libraries write private temporary files, or copy the mode of a source."""
    new = folder / ".new"
    new.touch()
    mode = new.stat().st_mode
    new.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def load_model(task: Task, source: Path) -> PreTrainedModel:
    """Return a task's model with the weights and buffers of a checkpoint, in fp32 on the CPU."""
    reader = CheckpointReader(source)
    model = task.model_to_load()
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reader.whole("weight", name))
        buffers = dict(model.named_buffers())
        for name, value in reader.buffers().items():
            buffers[name].copy_(value)
    return model


def chosen_checkpoint(run: Path, step: int | None) -> Path:
    """Return the folder of a run's checkpoint for a step, by default the newest intact one; log what is damaged.

    Raises:
        ConfigError: There is no such checkpoint, or it is damaged.
    """
    checkpoint, damaged = intact_checkpoint(run, step)
    for message in damaged:
        logger.warning("%s", message)
    return checkpoint


def continuation(folder: Path, prompt: str, *, tokens: int = 80, trust: bool = True) -> str:
    """Load a folder that was just exported, as any user would, and return its continuation of a prompt.

    Args:
        folder: The folder.
        prompt: Text to continue.
        tokens: Length of the continuation.
        trust: Whether to run the folder's code.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
    torch.manual_seed(0)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=True, top_k=40, temperature=0.8)
    return tokenizer.decode(output[0], skip_special_tokens=True)
