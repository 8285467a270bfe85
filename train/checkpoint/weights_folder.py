"""Weights of a Hugging Face folder, as a start: safetensors only; no code of the folder is run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from train.checkpoint.starting_point import VOCABULARY, weight_faults, weight_files
from train.config.errors import ConfigError


def load_folder(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a Hugging Face folder into a model.

    Headers and sizes of the files are verified; there are no checksums of their contents.

    Raises:
        ConfigError: Files are damaged or missing, or belong to a model with other shapes.
    """
    if faults := weight_faults(folder, model):
        raise ConfigError(faults)
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                weights |= {key: file.get_tensor(key) for key in list(file.keys())}
        except (SafetensorError, OSError) as error:
            raise ConfigError([f"checkpoint.start_from: {path} is damaged ({error}); copy it again"]) from None
    state = model.state_dict()
    for name in VOCABULARY:
        if name in weights and (rows := len(weights[name])) < len(state[name]):  # padding rows remain as they are
            weights[name] = torch.cat((weights[name], state[name][rows:].to(weights[name])))
    model.load_state_dict(weights, strict=False)
