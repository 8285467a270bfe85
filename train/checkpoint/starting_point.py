"""Checks of `checkpoint.start_from` before a run: a checkpoint of another run, or a Hugging Face folder.

Reads configurations, manifests and the headers of weights, but no weights; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling.decoder.facts_periln import DecoderShape, default_rope_parameters
from train.config.errors import ConfigError
from train.config.facts.folders import named_checkpoint
from train.config.facts.manifest import files_of, read_manifest
from train.config.facts.native import Architecture
from train.config.facts.native_config import OWN, meaning
from train.config.facts.run_layout import CHECKPOINTS, complete_steps, read_json, step_name
from train.config.facts.sealed import DamagedFileError
from train.config.facts.weight_files import saved_shapes, shape_faults
from train.config.load import read_run
from train.config.run import RunConfig
from train.config.tasks.box_segmentation import BoxClassifierConfig, SegmenterConfig
from train.config.tasks.joint_filter import FilterConfig
from train.config.tasks.language_model import DecoderConfig, LanguageModelConfig
from train.config.yaml_text import show

if TYPE_CHECKING:
    from torch import nn

_KEY = "checkpoint.start_from"
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")  # may come without padding rows
# Settings of a model that may differ: those of its initialization, loss and regularization, and its longest text.
_MAY_DIFFER = (
    *("initializer_range", "initializer_scheme", "dyt_alpha", "z_loss_coefficient", "frozen_norm_scales", "dropout"),
    *("backbone_weights", "max_position_embeddings"),
)
_ROPE = "rope_parameters"
_MODEL_TYPES = {  # of config.json, by the section `task.model`
    DecoderConfig: OWN,
    FilterConfig: "dkn",
    BoxClassifierConfig: "bap_box_classifier",
    SegmenterConfig: "bap_segmenter",
}


def faults(config: RunConfig) -> list[str]:
    """Return what is wrong with a run's starting point; nothing once the run has a checkpoint of its own."""
    start = config.checkpoint.start_from
    if start is None or complete_steps(config.folder / CHECKPOINTS):
        return []
    named = named_checkpoint(start)
    found = _folder_faults(config, Path(start)) if named is None else _checkpoint_faults(config, *named)
    return [f"{_KEY}: {fault}" for fault in found]


def weights_folder(config: RunConfig) -> Path | None:
    """Return the Hugging Face folder that a run starts from; None if it starts otherwise."""
    start = config.checkpoint.start_from
    return None if start is None or named_checkpoint(start) is not None else Path(start)


def refuse(config: RunConfig) -> None:
    """Refuse a starting point that is missing, incomplete or of another model.

    Raises:
        ConfigError: With every fault.
    """
    if found := faults(config):
        raise ConfigError(found)


def run_folder(config: RunConfig, run: str) -> Path:
    """Return the folder of the run that RUN@STEP names: a path, or a name in output_dir."""
    return Path(run) if (Path(run) / CHECKPOINTS).is_dir() else Path(config.output_dir) / run


# ------------------------------------------------------------------------------------------------------- RUN@STEP


def _checkpoint_faults(config: RunConfig, run: str, step: int) -> Iterator[str]:
    folder = run_folder(config, run)
    steps = complete_steps(folder / CHECKPOINTS)
    if not folder.is_dir():
        yield f"{folder} does not exist; write RUN@STEP with the name or path of a run, or a Hugging Face folder"
        return
    if step not in steps:
        available = f"available steps: {', '.join(map(str, steps))}" if steps else "it has no checkpoints"
        yield f"{folder} has no checkpoint for step {step}; {available}"
    else:
        yield from _file_faults(folder / CHECKPOINTS / step_name(step))
    if step >= config.steps:
        yield f"step {step} leaves nothing to train; raise steps ({config.steps})"
    try:
        other = read_run(folder)
    except ConfigError as error:
        yield f"{folder}: its configuration cannot be read: {error.faults[0]}"
        return
    if type(other.task.model) is not type(config.task.model):
        yield f"{folder} trains another kind of model ({other.task.kind}); start from a run of {config.task.kind}"
    else:
        yield from _differences(asdict(other.task.model), asdict(config.task.model), folder)
    if other.optim.optimizer != config.optim.optimizer:
        yield (
            f"optim.optimizer is {config.optim.optimizer}, but {other.optim.optimizer} in {folder}, whose state the "
            f"checkpoint holds; write the latter, or start from the weights alone: python -m train.export "
            f"{folder} OUT --step {step}, and checkpoint.start_from=OUT"
        )


def _file_faults(checkpoint: Path) -> Iterator[str]:
    """Yield files of a checkpoint that are missing or of another size than its manifest states; reads no file whole."""
    try:
        files = files_of(read_manifest(checkpoint))
    except DamagedFileError as error:
        yield f"{checkpoint} is damaged: {error}; name another step"
        return
    for file in files:
        try:
            size = (checkpoint / file.name).stat().st_size
            fault = None if size == file.bytes else f"has {size:,} bytes instead of {file.bytes:,}"
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault is not None:
            yield f"{checkpoint / file.name} {fault}; name another step"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], source: Path) -> Iterator[str]:
    for key in (key for key in new if key in old and key not in (*_MAY_DIFFER, _ROPE)):
        before, after = (list(value) if isinstance(value, tuple) else value for value in (old[key], new[key]))
        if before != after:
            yield f"task.model.{key} is {show(after)}, but {show(before)} in {source}; write the latter"
    if _ROPE in old and _ROPE in new:
        yield from _rope_differences(old, new, source)


def _rope_differences(old: Mapping[str, Any], new: Mapping[str, Any], source: Path) -> Iterator[str]:
    """Yield that positions are turned otherwise, unless training on longer text is to change that."""
    before, after = (_complete_rope(each) for each in (old, new))
    if before != after and not new["max_position_embeddings"] > old["max_position_embeddings"]:
        yield (
            f"task.model.{_ROPE} is {show(new[_ROPE])}, but {show(old[_ROPE])} in {source}; write the latter, or raise "
            f"task.model.max_position_embeddings ({old['max_position_embeddings']} there) to train on longer text"
        )


def _complete_rope(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary positions of a model with what transformers fills in."""
    complete = {**default_rope_parameters(), **model[_ROPE]}
    if complete["rope_type"] in ("yarn", "llama3"):
        complete.setdefault("original_max_position_embeddings", model["max_position_embeddings"])
    return complete


# ------------------------------------------------------------------------------------------------------- a folder


def _folder_faults(config: RunConfig, folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"{folder} does not exist; write RUN@STEP (runs/a@500), or an existing Hugging Face folder"
        return
    if not any(folder.glob("*.safetensors")):
        yield f"{folder} contains no .safetensors file; pass a Hugging Face folder"
    exported = read_json(folder / "config.json")
    if not isinstance(exported, dict):
        yield f"{folder / 'config.json'} is missing or unreadable, which states what the weights mean"
    elif isinstance(config.task, LanguageModelConfig) and exported.get("model_type") != OWN:
        yield from _native_faults(config.task, exported, folder)
    elif exported.get("model_type") != (wanted := _MODEL_TYPES[type(config.task.model)]):
        stated = show(exported.get("model_type"))
        yield f"{folder} holds another kind of model: its model_type is {stated}, that of {config.task.kind} {wanted}"
    else:
        stated = {**_defaults(type(config.task.model)), **exported}
        stated.pop("vocab_size_multiple", None)  # of the padding rows, which exported folders lack
        yield from _differences(stated, _exported_form(config), folder)


def _defaults(section: type) -> dict[str, Any]:
    """Return what a config.json means that does not state a setting: the defaults, which are those of its class."""
    return {each.name: each.default for each in fields(section) if each.default not in (MISSING, None)}


def _native_faults(task: LanguageModelConfig, exported: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Yield why a folder of an architecture of transformers is not the decoder of this run."""
    found = meaning(exported)
    if found.shape is None:
        yield from (f"{folder / 'config.json'}: {fault}" for fault in found.faults)
        return
    yield from _differences(found.settings, _computed_form(task), folder)


def _computed_form(task: LanguageModelConfig) -> dict[str, Any]:
    """Return the settings of the decoder with one name for what has several: a list of equal placements is that one."""
    shape = DecoderShape.of(task.model)
    placements = list(dict.fromkeys(shape.layer_norm_placements))
    placement = placements[0] if len(placements) == 1 else shape.norm_placement
    return asdict(shape) | {"head_dim": shape.head_width, "norm_placement": placement}


def _exported_form(config: RunConfig) -> dict[str, Any]:
    """Return the settings of the model as an exported config.json states them: with its own width of a head."""
    model = asdict(config.task.model)
    if "head_dim" in model and model["head_dim"] is None:
        model["head_dim"] = model["hidden_size"] // model["num_attention_heads"]
    return model


def weight_faults(folder: Path, model: nn.Module) -> list[str]:
    """Return the tensors of a folder that do not fit a model by name or shape; reads headers only.

    Args:
        folder: A Hugging Face folder.
        model: The model, which may be on the meta device; shared parameters need one name each.
    """
    native, model_config = native_folder(folder), getattr(model, "config", None)
    try:
        saved = saved_shapes(folder)
    except DamagedFileError as error:
        return [f"{_KEY}: {error}"]
    if native is not None and getattr(model_config, "model_type", None) == OWN:
        from train.convert.folder import expected_shapes  # imports torch, which this module does not

        shape = DecoderShape.of(model_config)
        found = shape_faults(saved, expected_shapes(native, shape), is_tied=native.is_tied(shape))
    else:
        shared = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in saved}
        replaced = {n for n, p in model.named_parameters(remove_duplicate=False) if n not in saved and id(p) in shared}
        wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if name not in replaced}
        wanted |= {name: saved[name] for name in VOCABULARY if name in wanted and lacks_padding(model, saved.get(name))}
        found = shape_faults(saved, wanted, is_tied=False)
    return [f"{_KEY}: {folder}: {fault}" for fault in found]


def native_folder(folder: Path) -> Architecture | None:
    """Return the architecture of transformers that a folder is of; None for one of ours, or of any other model."""
    return meaning(read_json(folder / "config.json") or {}).architecture


def lacks_padding(model: nn.Module, shape: list[int] | None) -> bool:
    """Return whether this is the shape of a model's embedding or head without its padding rows, as in exports."""
    config = getattr(model, "config", None)
    return shape is not None and shape == [getattr(config, name, None) for name in ("vocab_size", "hidden_size")]
