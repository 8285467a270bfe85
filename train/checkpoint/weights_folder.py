"""Weights of a Hugging Face folder, as a start: safetensors only; no code of the folder is run."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from train.checkpoint.checkpoint import require_same_shapes
from train.config.errors import ConfigError

INDEX = "model.safetensors.index.json"  # of weights in several files: the file of each


def load_folder(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a Hugging Face folder into a model.

    Headers and sizes of the files are verified; there are no checksums of their contents.

    Raises:
        ConfigError: There are no safetensors, some are damaged or missing, or they belong to a model with other shapes.
    """
    weights = _read(_files(folder), folder)
    state = model.state_dict()
    tied = {tensor.data_ptr() for name, tensor in state.items() if name in weights}
    wanted = {name: t.shape for name, t in state.items() if name in weights or t.data_ptr() not in tied}
    require_same_shapes(
        {name: list(t.shape) for name, t in weights.items()}, {n: list(s) for n, s in wanted.items()}, folder
    )
    model.load_state_dict(weights, strict=False)


def _files(folder: Path) -> list[Path]:
    """Return the safetensors of a folder; all that its index names are there."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            [f"checkpoint.start_from: {folder} contains no .safetensors file; pass a Hugging Face folder"]
        )
    if not (folder / INDEX).exists():
        return files
    try:
        named = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError([f"checkpoint.start_from: {folder / INDEX} is damaged; copy the folder again"]) from None
    if missing := sorted(map(str, named - {path.name for path in files})):
        raise ConfigError([f"checkpoint.start_from: {folder} lacks {', '.join(missing)}; copy the folder again"])
    return [path for path in files if path.name in named]


def _read(files: list[Path], folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                weights |= {key: file.get_tensor(key) for key in list(file.keys())}
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigError(
                [f"checkpoint.start_from: {folder} cannot be read: {path.name} is damaged ({error}); copy it again"]
            ) from None
    return weights
