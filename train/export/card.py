"""Model cards: the README.md of an exported folder, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import EvalResult, ModelCardData

from modeling.decoder.configuration_periln import REQUIRED_TRANSFORMERS
from train.config.facts.run_layout import read_json, row_of
from train.config.run import RunConfig
from train.data import summary
from train.data.budget import number_of_epochs
from train.export import measured
from train.export.native_report import NativeReport
from train.tasks.task import ModelCard, Task

logger = logging.getLogger(__name__)

TRANSFORMERS = ".".join(map(str, REQUIRED_TRANSFORMERS))  # the oldest version with which the project is tested


def write_card(
    folder: Path,
    task: Task,
    config: RunConfig,
    run: Path,
    step: int,
    *,
    native: NativeReport | None = None,
    with_figure: bool = True,
    place: str = "FOLDER",
) -> None:
    """Write the model card of an exported folder and, unless nothing was measured over layers, its figure.

    Args:
        folder: The exported folder.
        task: As in `model_card`, as are the other arguments.
        config: See there.
        run: See there.
        step: See there.
        native: See there.
        with_figure: Whether there is a figure, which takes some seconds.
        place: See there.
    """
    is_measured = with_figure and measured.stream_variance(run, step) is not None
    figure = measured.FIGURE if is_measured and measured.figure(run, step, folder / measured.FIGURE) else None
    card = model_card(task, config, run, step, native=native, figure=figure, place=place)
    (folder / "README.md").write_text(card)


def model_card(
    task: Task,
    config: RunConfig,
    run: Path,
    step: int,
    *,
    native: NativeReport | None = None,
    figure: str | None = None,
    place: str = "FOLDER",
) -> str:
    """Return the README of an exported model.

    Args:
        task: The task, which describes the model.
        config: The run's configuration.
        run: The run folder: its metrics, measurements and environment are read as far as they exist.
        step: Step of the exported checkpoint.
        native: The architecture of transformers it was exported as; None: this project's own code.
        figure: File name of the figure in the exported folder, if there is one.
        place: Folder or hub name in the code that loads the model.
    """
    environment, metrics, card = read_json(run / "environment.json") or {}, last_metrics(run, step), task.card()
    facts = environment.get("data", {})
    usage = (card.usage if native is None else native.usage()).replace("FOLDER", place)
    sections = {
        "": f"{card.summary} Trained for {_trained(config, step)}{_amount(metrics, environment)}.",
        "Use": f"{_needs(native)}\n\n```python\n{usage}\n```",
        "Architecture": _list([*card.details, *(native.lines() if native is not None else ())]),
        "Evaluation": _table(metrics),
        "Data": _list([_shortened(card.data), *_lines_of_data(facts)]),
        "Training": _list(_training(config, environment)),
        "Measurements": _measurements(run, step, figure),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text)
    return f"---\n{_metadata(card, config, facts, metrics)}\n---\n\n# {config.name}\n\n{body}\n"


# ------------------------------------------------------------------------------------------------------- the metadata


def _metadata(card: ModelCard, config: RunConfig, facts: Any, metrics: Mapping[str, float]) -> str:
    """Return the YAML that the hub reads; a key without a value is left out."""
    names, results = _hub_names(facts, "task.data."), list(_results(card, facts, metrics))
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=card.pipeline_tag,
        license=config.export.license,
        tags=card.tags,
        datasets=names or None,
        model_name=config.name if results else None,
        eval_results=results or None,
    ).to_yaml(line_break="\n")


def _results(card: ModelCard, facts: Any, metrics: Mapping[str, float]) -> Iterator[EvalResult]:
    """Yield a result for each validation metric; each labeled set of validation text is a data set of its own."""
    names = _hub_names(facts, "task.data.validation_sources") or _hub_names(facts, "task.data.sources")
    labels = _labels(facts)
    for name, value in metrics.items():
        if not name.startswith("validation_"):
            continue
        metric = name.removeprefix("validation_")
        label = next((label for label in labels if metric.startswith(f"{label}_")), None)
        yield EvalResult(
            task_type=card.pipeline_tag or "other",
            dataset_type=names[0] if len(names) == 1 else "custom",
            dataset_name="validation data of the run" if label is None else f"validation data: {label}",
            dataset_config=label,  # by which the hub tells them apart, not by their names
            dataset_split="validation",
            metric_type=metric if label is None else metric.removeprefix(f"{label}_"),
            metric_value=value,
        )


def _hub_names(facts: Any, section: str) -> list[str]:
    """Return the data sets of the hub among the sources of a section, each once."""
    sources = facts.get("sources") if isinstance(facts, Mapping) else None
    if not isinstance(sources, Mapping):
        return []
    chosen = [source for path, source in sources.items() if path.startswith(section) and isinstance(source, Mapping)]
    return list(dict.fromkeys(source["path"] for source in chosen if _is_hub_name(source)))


def _is_hub_name(source: Mapping[str, Any]) -> bool:
    return isinstance(source.get("path"), str) and "named" in (source.get("formats") or {})


def _labels(facts: Any) -> list[str]:
    sets = facts.get("validation_sets") if isinstance(facts, Mapping) else None
    labels = [each.get("label") for each in sets or () if isinstance(each, Mapping)]
    return sorted((label for label in labels if isinstance(label, str)), key=len, reverse=True)


# ----------------------------------------------------------------------------------------------------------- the text


def _trained(config: RunConfig, step: int) -> str:
    return f"{step:,} of {config.steps:,} steps of {config.global_batch_size} samples"


def _amount(metrics: Mapping[str, float], environment: Mapping[str, Any]) -> str:
    """Return tokens, epochs and tokens per parameter so far in words, as far as they are known."""
    words = [number_of_epochs(metrics["epoch"])] if "epoch" in metrics else []
    parameters = environment.get("parameters")
    if "tokens" in metrics and isinstance(parameters, int) and parameters:
        words.append(f"{metrics['tokens'] / parameters:.3g} tokens per parameter")
    return f" ({', '.join(words)})" if words else ""


def _needs(native: NativeReport | None) -> str:
    written = f"written with {transformers.__version__}"
    if native is not None:
        return f"Needs transformers with `{native.architecture}` ({written}); the folder has no code of its own."
    return f"Needs transformers {TRANSFORMERS} or later ({written}), and runs the Python files in this folder."


def _table(metrics: Mapping[str, float]) -> str:
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:,.6g} |" for name, value in metrics.items())
    return f"| metric | value |\n|---|---|\n{rows}" if rows else ""


def _training(config: RunConfig, environment: Mapping[str, Any]) -> Iterator[str]:
    optim = config.optim
    yield (
        f"{optim.optimizer}, peak learning rate {optim.lr:g} (schedule {optim.schedule}), weight decay "
        f"{optim.weight_decay:g}, seed {config.seed}"
    )
    if isinstance(precision := environment.get("precision"), str):
        ranks = environment.get("world_size")
        yield f"precision {precision}" + (f", {ranks} rank{'s' * (ranks != 1)}" if isinstance(ranks, int) else "")
    if isinstance(commit := environment.get("git_sha"), str):
        yield f"periln at commit `{commit}`" + (", with uncommitted changes" if environment.get("git_dirty") else "")


def _measurements(run: Path, step: int, figure: str | None) -> str:
    variance, norm = measured.stream_variance(run, step), measured.gradient_norm(run, step)
    lines = [
        variance.in_words("variance of the residual stream after a layer") if variance else "",
        norm.in_words("norm of a layer's gradient, before clipping") if norm else "",
    ]
    drawn = f"\n\n![Variance of the residual stream and gradient norm over depth]({figure})" if figure else ""
    return _list(filter(None, lines)) + drawn


def _lines_of_data(facts: Any) -> list[str]:
    """Return what the data are, a line each; nothing if environment.json does not hold what a task records."""
    try:
        return [line.strip() for line in summary.lines(_with_short_paths(facts))]
    except (AttributeError, LookupError, TypeError, ValueError):
        logger.warning("environment.json is damaged: the model card has no facts about the data")
        return []


def _with_short_paths(facts: Mapping[str, Any]) -> dict[str, Any]:
    sources = {key: {**source, "path": _short(source["path"])} for key, source in facts.get("sources", {}).items()}
    repeated = [_short(path) for path in facts.get("read_repeatedly", ())]
    return {**facts, "sources": sources, "read_repeatedly": repeated}


def _shortened(paths: str) -> str:
    return ", ".join(_short(path) for path in paths.split(", "))


def _short(path: str) -> str:
    """Return an absolute path without its first folders: they tell of the machine, not of the data."""
    parts = path.split("/")
    return f".../{'/'.join(parts[-2:])}" if parts[0] in ("", "~") and len(parts) > 3 else path


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def last_metrics(run: Path, step: int) -> dict[str, float]:
    """Return the last training and validation metrics of a run, up to a step; damaged lines are skipped."""
    metrics: dict[str, Any] = {}
    path = run / "metrics.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        row = row_of(line)
        if row is not None and row["step"] <= step:
            metrics |= row
    names = ["step", "tokens", "epoch", "loss", *(name for name in metrics if name.startswith("validation_"))]
    return {name: metrics[name] for name in names if isinstance(metrics.get(name), int | float)}
