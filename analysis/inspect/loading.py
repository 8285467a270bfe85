"""Loader for causal language models of transformers and their tokenizers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from analysis.inspect.settings import DTYPES
from analysis.runs import InputError

_OUR_CODE = Path(__file__).parents[2] / "modeling" / "decoder"  # compared with, not imported
_ROOM = 0.7  # of a GPU's free memory that the weights may take; the rest is for activations and the gradients' start


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        model: In evaluation mode.
        tokenizer: Its own, or the one that was asked for.
        device: For people.
        dtype: Of most weights, for people.
        is_offloaded: Some weights do not lie on the device, so there are no gradients.
        max_length: Most tokens of a window, None where positions have no end.
    """

    model: Any
    tokenizer: Any
    device: str
    dtype: str
    is_offloaded: bool
    max_length: int | None


def check(name: str, *, trust: bool = False) -> None:
    """Refuse a folder or hub name that is not a causal language model, reading only its configuration.

    Raises:
        InputError: It is not a causal language model, or its configuration cannot be read.
    """
    _config(name, trust or _is_ours(name), name=name)


def load(
    folder: str,
    *,
    device: str = "auto",
    dtype: str | None = None,
    tokenizer: str | None = None,
    trust: bool = False,
    name: str | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        folder: Folder or hub name, the latter also as NAME@REVISION: a branch, a tag or a commit.
        device: auto, cpu, cuda, cuda:1 ...; auto spreads a model over devices, and offloads, where one is too small.
        dtype: A key of DTYPES; None: fp32 on the CPU, as saved on a GPU.
        tokenizer: Folder or hub name of another tokenizer, the latter also as NAME@REVISION.
        trust: Run the code of the model's folder. Folders whose code is that of this checkout run it always.
        name: What messages call it; default: the folder.

    Raises:
        InputError: It is no causal language model, lacks weights or a tokenizer, or cannot be reached.
    """
    name = name or folder
    trust_model = trust or _is_ours(folder)
    config = _config(folder, trust_model, name=name)
    chosen = _device(device)
    dtype = dtype or ("fp32" if chosen.type == "cpu" else "as-saved")
    settings: dict[str, Any] = {"dtype": DTYPES[dtype], "trust_remote_code": trust_model}
    if device == "auto" and chosen.type == "cuda" and not _fits(folder, chosen):
        settings["device_map"] = "auto"
    model = _weights(folder, settings, name=name)
    if "device_map" not in settings:
        model = model.to(chosen)
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return LoadedModel(
        model=model.eval(),
        tokenizer=_tokenizer(tokenizer or folder, trust, name=tokenizer or name),
        device=" + ".join(sorted(places)) if places else str(chosen),
        dtype=_dtype(model),
        is_offloaded=bool(places & {"cpu", "disk"}),
        max_length=limit if isinstance(limit, int) else None,
    )


def located(name: str) -> tuple[str, str | None]:
    """Return the folder or hub name, and the revision of NAME@REVISION; a folder's own name may contain an @."""
    place, _, revision = name.partition("@")
    return (name, None) if Path(name).exists() or not revision else (place, revision)


def _is_ours(name: str) -> bool:
    """Return whether a folder is an export of our decoder, and all the code in it, or that it names, is ours."""
    try:
        config = json.loads((Path(name) / "config.json").read_bytes())
        modules = [str(place).rpartition(".")[0] for place in config.get("auto_map", {}).values()]
    except (OSError, ValueError, AttributeError):
        return False
    # REPOSITORY--module and ../module are not names of files here
    is_named_here = all(module.isidentifier() and (_OUR_CODE / f"{module}.py").is_file() for module in modules)
    return config.get("model_type") == "periln" and is_named_here and not _foreign_code(Path(name))


def _foreign_code(folder: Path) -> list[str]:
    """Return what may hold code other than this checkout's: .py files that differ, and links to folders."""
    foreign: list[str] = []
    for path in sorted(folder.rglob("*")):
        is_other = path.suffix == ".py" and not (path.is_file() and _is_equal(path, _OUR_CODE / path.name))
        if is_other or (path.is_symlink() and path.is_dir()):
            foreign.append(str(path.relative_to(folder)))
    return foreign


def _is_equal(path: Path, ours: Path) -> bool:
    return ours.is_file() and path.read_bytes() == ours.read_bytes()


def _config(folder: str, trust: bool, *, name: str) -> Any:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        place, revision = located(folder)
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(_why_unreadable(folder, error, name=name)) from error
    classes = [str(found) for found in getattr(config, "architectures", None) or ()]
    mapped: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    expected = [mapped.__name__] if mapped is not None else []
    actual = ", ".join(classes) or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{name}: {actual} is an encoder-decoder; inspect supports only causal language models")
    is_named = any(found in expected or found.endswith(("ForCausalLM", "LMHeadModel")) for found in classes)
    is_loadable = mapped is not None or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not is_loadable or (classes and not is_named):
        raise InputError(
            f"{name}: {actual} is not a causal language model; give one that AutoModelForCausalLM loads "
            "(...ForCausalLM)"
        )
    return config


def _why_unreadable(folder: str, error: Exception, *, name: str) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        foreign = ", ".join(_foreign_code(Path(folder))) or "named in its configuration"
        return (
            f"{name}: it comes with code that is not this checkout's ({foreign}) and was not run; review it, and if "
            "you trust it, pass --trust-remote-code"
        )
    if Path(name).is_dir():
        return f"{name}/config.json: transformers cannot read it: {first}"
    return (
        f"{name}: no such folder, and not available from the hub ({first}); check name and network, or download "
        f"it on a connected machine ({_download(name)}) and give the folder"
    )


def _download(name: str) -> str:
    place, revision = located(name)
    return f"hf download {place}{f' --revision {revision}' if revision else ''} --local-dir FOLDER"


def _weights(folder: str, settings: dict[str, Any], *, name: str) -> Any:
    try:
        place, revision = located(folder)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, revision=revision, output_loading_info=True, **settings
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{name}: its weights cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{name}: lacks {len(missing)} weights ({', '.join(missing[:3])}{', ...' if missing[3:] else ''}), which "
            "would be initialized at random; give a complete causal language model"
        )
    return model


def _tokenizer(folder: str, trust: bool, *, name: str) -> Any:
    try:
        place, revision = located(folder)
        return AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trust)
    except Exception as error:  # each tokenizer class fails in its own way
        if "trust_remote_code" in str(error):
            raise InputError(_why_unreadable(folder, error, name=name)) from error
        raise InputError(
            f"{name}: has no loadable tokenizer; pass --tokenizer with a folder that has tokenizer.json, or a hub name"
        ) from error


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: not available; write auto, cpu, or a device of this machine") from error
    return chosen


def _fits(name: str, device: torch.device) -> bool:
    """Whether the weights' files take less than their share of a GPU's free memory; hub names are taken to fit."""
    size = sum(path.stat().st_size for path in Path(name).glob("*.safetensors")) if Path(name).is_dir() else 0
    return size < _ROOM * torch.cuda.mem_get_info(device)[0]


def _dtype(model: nn.Module) -> str:
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name])
