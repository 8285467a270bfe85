"""Evaluation of an exported image model, filter or network of segmentation, on images of the user's choice.

The images are read and judged as by a task that trains such a model. The folder's model is read by this checkout's own
class: no code of the folder is run, and nothing in it changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args, get_type_hints

from train.config import yaml_text
from train.config.errors import ConfigError
from train.config.load import load_tree
from train.config.run import RunConfig
from train.config.tasks.box_segmentation import (
    PROCEDURAL_OBJECTS,
    RANDOM_WEIGHTS,
    BoxClassifierConfig,
    SegmenterConfig,
)
from train.config.tasks.joint_filter import FilterConfig
from train.config.tasks.kinds import TaskConfig
from train.evaluate.run import Evaluation, forbidden, overridable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DKN = "dkn"
_SECTIONS = {_DKN: FilterConfig, "bap_box_classifier": BoxClassifierConfig, "bap_segmenter": SegmenterConfig}
IMAGE_MODELS = tuple(_SECTIONS)  # as config.json names them
_SOURCES = "task.data.validation_sources"
_SCALE = "task.data.scale"
_UNREAD_PAIRS = "procedural-scenes"


def image_folder_config(
    folder: Path, described: Mapping[str, Any], overrides: Sequence[str], *, like: Path | None = None
) -> RunConfig:
    """Return what a run would have to be to evaluate a folder's model; does not import torch.

    Args:
        folder: The folder.
        described: Its config.json, of one of IMAGE_MODELS.
        overrides: Evaluation settings, and `task.kind` unless there is `like`.
        like: A run's configuration, whose task states the data and how they are judged; None: the overrides do.

    Raises:
        ConfigError: There are no images, their scale is unknown, or an override is invalid or not allowed.
    """
    model_type = described["model_type"]
    kinds = {each.kind: each for each in get_args(TaskConfig) if _section_of(each) is _SECTIONS[model_type]}
    if like is not None:
        task, words = _task_of(like, folder, kinds), list(overrides)
    else:
        words = [word for word in overrides if not word.startswith("task.kind=")]
        kind = _kind(overrides, described, kinds)
        task = {"kind": kind, "data": _data(kinds[kind], described)}
        task |= {"loss": "truth"} if kind == "semantic_segmentation" else {}
    tree = _tree(task | {"model": _model(described)})
    faults = list(forbidden(words, overridable(load_tree(tree), of_folder=True)))
    if like is None:
        needs_scale = model_type == _DKN and _reads(kinds[task["kind"]], "scale") and "scale" not in task["data"]
        faults += _missing(words, needs_scale=needs_scale)
    if faults:
        raise ConfigError(faults)
    return load_tree(tree, words)


def _section_of(kind: type) -> type:
    return get_type_hints(kind)["model"]


def _task_of(like: Path, folder: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return the section `task` of a configuration.

    Raises:
        ConfigError: It cannot be read, or its task trains another kind of model.
    """
    text = yaml_text.read(like)
    if text.tree is None or text.faults:
        raise ConfigError(text.faults)
    task = text.tree.get("task")
    kind = cast("dict[str, Any]", task).get("kind") if isinstance(task, dict) else None
    if kind not in kinds:
        raise ConfigError([f"{like}: task.kind is {kind}, but {folder} can be judged as {' or '.join(kinds)}"])
    return cast("dict[str, Any]", task)


def _kind(overrides: Sequence[str], described: Mapping[str, Any], kinds: Mapping[str, type]) -> str:
    """Return the kind of the task that judges: as written, else the one that the model was trained for.

    Raises:
        ConfigError: No task of that kind has such a model.
    """
    written = [word.partition("=")[2] for word in overrides if word.startswith("task.kind=")]
    if not written:
        trained_for = _purpose(described).get("task")
        return next((kind for kind in kinds if kind == trained_for), next(iter(kinds)))
    if written[-1] not in kinds:
        raise ConfigError([f"task.kind: {written[-1]} does not judge such a model; write {' or '.join(kinds)}"])
    return written[-1]


def _purpose(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a filter was trained for, as far as config.json states it."""
    purpose = described.get("purpose")
    return purpose if isinstance(purpose, Mapping) else {}


def _data(kind: Any, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `task.data` without the images: what the folder tells of it; training data are never read."""
    unread: list[Any] = [{"path": PROCEDURAL_OBJECTS if _reads(kind, "classes") else _UNREAD_PAIRS, "stop": 1}]
    data: dict[str, Any] = {"sources": unread, "validation_sources": unread}
    if described["model_type"] != _DKN:
        return data | {"classes": [name for number, name in described.get("id2label", {}).items() if int(number)]}
    purpose = _purpose(described)
    stated = {key: purpose[key] for key in ("scale", "downsampling") if purpose.get(key) and _reads(kind, key)}
    return data | stated if purpose.get("task") == kind.kind else data


def _reads(kind: type, key: str) -> bool:
    """Return whether a kind of task has a setting `task.data.KEY`."""
    return any(each.name == key for each in fields(get_type_hints(kind)["data"]))


def _model(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `task.model` that a config.json describes."""
    section = _SECTIONS[described["model_type"]]
    stated = {each.name: described[each.name] for each in fields(section) if each.name in described}
    return stated if section is FilterConfig else stated | {"backbone_weights": RANDOM_WEIGHTS}


def _tree(task: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run of a task; what an evaluation does not read is arbitrary."""
    batch = {"global_batch_size": 10**7, "micro_batch_size": 1}
    return {"name": "evaluation", "steps": 1, **batch, "task": task, "optim": {"lr": 1e-3}}


def _missing(words: Sequence[str], *, needs_scale: bool) -> Iterator[str]:
    """Yield what has to be written and is not."""
    if not any(word.startswith(_SOURCES) for word in words):
        yield (
            f"{_SOURCES}: missing; name the images to evaluate on, as in {_SOURCES}='[{{path: FOLDER}}]', or pass the "
            "configuration of a run that reads them: python -m train.evaluate FOLDER CONFIG"
        )
    if needs_scale and not any(word.startswith(f"{_SCALE}=") for word in words):
        yield f"{_SCALE}: missing; write the factor by which the targets are downsampled, that of the filter's training"


def evaluate_image_folder(config: RunConfig, folder: Path) -> Evaluation:
    """Evaluate a folder's model with a configuration from `image_folder_config`.

    Raises:
        ConfigError: The model cannot be loaded, or the images are missing or do not fit it.
    """
    from train.evaluate.folder_model import load_own, model_in_words
    from train.evaluate.validation import validated
    from train.tasks import build_task

    task = build_task(config)
    task.open_validation()
    model: PreTrainedModel = load_own(folder)
    metrics = validated(task, model, size=config.micro_batch_size)
    return Evaluation(None, f"{folder}: {model_in_words(model)}", metrics, task.describe_validation())
