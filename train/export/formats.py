"""The format of an export: an architecture of transformers where one computes the model, else the model's own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from modeling.decoder.facts_periln import DecoderShape
from train.config.errors import ConfigError
from train.config.facts.native import Architecture
from train.config.facts.native_choice import Choice, native_choice
from train.config.run import RunConfig
from train.config.tasks.language_model import LanguageModelConfig
from train.export.native_report import NativeReport

if TYPE_CHECKING:
    import torch

    from train.tasks.task import Task

Format = Literal["native", "periln"]
FORMATS: tuple[Format, ...] = ("native", "periln")


class Exported(NamedTuple):
    """What was exported: the step, and lines that say as what and, for a native architecture, how it compares."""

    step: int
    is_native: bool
    lines: list[str]


def choice_for(config: RunConfig, asked: Format | None) -> Choice:
    """Return the architecture to export a run as, or the reasons why its own code goes along; imports no torch.

    Args:
        config: The run.
        asked: The format that the user named; None: native where there is one.

    Raises:
        ConfigError: Native was asked for, and no architecture computes this model.
    """
    if not isinstance(config.task, LanguageModelConfig):
        choice = Choice(None, (f"task.kind {config.task.kind}: transformers has no architecture for it",))
    else:
        choice = native_choice(DecoderShape.of(config.task.model))
    if asked == "native" and choice.architecture is None:
        nearest = f"; the nearest decoder that has one: {choice.nearest}" if choice.nearest else ""
        raise ConfigError(
            [f"--format native: {reason}" for reason in choice.reasons[:-1]]
            + [f"--format native: {choice.reasons[-1]}{nearest}. Write --format periln, or omit it"]
        )
    return Choice(None, ("--format periln",)) if asked == "periln" else choice


def export(
    run: Path,
    out: Path,
    *,
    choice: Choice,
    step: int | None = None,
    dtype: str = "fp32",
    is_verified: bool = True,
    with_figure: bool = True,
    place: str = "FOLDER",
) -> Exported:
    """Export a run's checkpoint.

    Args:
        run: The run folder.
        out: The folder to write.
        choice: From `choice_for`.
        step: Step of the checkpoint; None for the newest that is intact.
        dtype: `fp32` or `bf16`, of the weights on disk.
        is_verified: Whether a native folder is compared with the trained model.
        with_figure: Whether the model card gets a figure, which takes some seconds.
        place: Folder or hub name in the model card's code.

    Raises:
        ConfigError: RUN is not a run folder, has no such checkpoint or no intact one, or OUT is in use.
        VerificationError: A native folder does not compute what the trained model does; nothing was written.
    """
    from train.checkpoint.checkpoint import CheckpointReader
    from train.config.load import read_run
    from train.export.card import write_card
    from train.export.model_folder import DTYPES, chosen_checkpoint, require_free, write_model_folder
    from train.tasks import build_task

    config = read_run(run)
    source = chosen_checkpoint(run, step)
    require_free(out)
    saved_step, task = CheckpointReader(source).progress.step, build_task(config)
    if dtype == "bf16" and not task.supports_bf16:
        raise ConfigError([f"--dtype bf16: {config.task.kind} models run in fp32 only; write --dtype fp32, or omit it"])

    def card(folder: Path, native: NativeReport | None = None) -> None:
        write_card(folder, task, config, run, saved_step, native=native, with_figure=with_figure, place=place)

    if choice.architecture is None:
        model = write_model_folder(task, source, out, dtype=DTYPES[dtype], card=card)
        return Exported(saved_step, False, _own_lines(type(model).__name__, choice))
    report = _write_native(
        task,
        choice.architecture,
        source,
        out,
        dtype=DTYPES[dtype],
        is_verified=is_verified,
        card=card,
    )
    exported = f"exported as {report.architecture}: plain transformers loads it, without remote code"
    return Exported(saved_step, True, [exported, *(f"  {line}" for line in report.lines()[1:])])


def _write_native(
    task: Task,
    architecture: Architecture,
    source: Path,
    out: Path,
    *,
    dtype: torch.dtype,
    is_verified: bool,
    card: Callable[[Path, NativeReport], None],
) -> NativeReport:
    """Write a language model's checkpoint as an architecture of transformers."""
    from modeling.decoder.configuration_periln import PeriLNConfig
    from train.export.native_folder import comparison_tokens, write_native_folder
    from train.export.native_weights import tensors_of
    from train.tasks.language_model import LanguageModel

    assert isinstance(task, LanguageModel)
    end_of_text = task.data.eos_token_id
    decoder = PeriLNConfig(**asdict(task.config.model))
    decoder.bos_token_id = decoder.eos_token_id = end_of_text
    return write_native_folder(
        decoder,
        architecture,
        tensors_of(source),
        out,
        dtype=dtype,
        settings=task.export_settings(),
        tokens=comparison_tokens(task, decoder) if is_verified else None,
        save_assets=task.save_assets,
        card=card,
    )


def _own_lines(class_name: str, choice: Choice) -> list[str]:
    """Return as what a model was exported, and why not natively."""
    exported = f"exported as {class_name} with its code: pass trust_remote_code=True to load it"
    lines = [exported, *(f"  {reason}" for reason in choice.reasons if not reason.startswith("--"))]
    return [*lines, f"  the nearest decoder with a native architecture: {choice.nearest}"] if choice.nearest else lines
