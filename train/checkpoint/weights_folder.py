"""Weights of a Hugging Face folder, as a start: safetensors only; no code of the folder is run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from train.checkpoint.starting_point import VOCABULARY, native_folder, weight_faults
from train.config.errors import ConfigError
from train.config.facts.weight_files import weight_files
from train.convert.folder import load_native


def load_folder(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a Hugging Face folder into a model: of its own family, or of an architecture of transformers.

    Headers and sizes of the files are verified; there are no checksums of their contents.

    Raises:
        ConfigError: Files are damaged or missing, belong to a model with other shapes, or mean what the model lacks.
    """
    if faults := weight_faults(folder, model):
        raise ConfigError(faults)
    native = native_folder(folder)
    try:
        if native is not None and isinstance(model, PeriLNForCausalLM):
            load_native(model.state_dict(), native, DecoderShape.of(model.config), folder)
        else:
            model.load_state_dict(_weights(model, folder), strict=False)
    except (SafetensorError, OSError) as error:
        raise ConfigError([f"checkpoint.start_from: {folder} is damaged ({error}); copy it again"]) from None
    except ValueError as error:
        raise ConfigError([f"checkpoint.start_from: {folder}: {error}"]) from None


def _weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Return the weights of a folder of ours, filled up with the model's own padding rows."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            weights |= {key: file.get_tensor(key) for key in list(file.keys())}
    state = model.state_dict()
    for name in VOCABULARY:
        if name in weights and (rows := len(weights[name])) < len(state[name]):  # padding rows remain as they are
            weights[name] = torch.cat((weights[name], state[name][rows:].to(weights[name])))
    return weights
