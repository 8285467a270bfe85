"""Folders of an architecture of transformers as weights of our decoder: what they contain, and reading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from modeling.decoder.configuration_periln import PeriLNConfig
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.modeling_periln import PeriLNForCausalLM
from train.config.facts.native import Architecture
from train.config.facts.weight_files import weight_files
from train.convert.rules import rules


def expected_shapes(architecture: Architecture, shape: DecoderShape) -> dict[str, list[int]]:
    """Return the shape of every tensor of the architecture, for a decoder that it fits."""
    ours = outline_state(asdict(shape))
    return {rule.native: list(rule.to_native(ours.__getitem__).shape) for rule in rules(architecture, shape)}


def own_shapes(settings: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shape of every tensor of our decoder.

    Raises:
        TypeError, ValueError: Settings are unknown or invalid.
    """
    return {name: list(tensor.shape) for name, tensor in outline_state(settings).items()}


def outline_state(settings: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the tensors of our decoder by name, on the meta device.

    Raises:
        TypeError, ValueError: Settings are unknown or invalid.
    """
    config = PeriLNConfig(**settings)
    with torch.device("meta"):
        return PeriLNForCausalLM(config).state_dict()


@torch.no_grad()
def load_native(state: Mapping[str, Tensor], architecture: Architecture, shape: DecoderShape, folder: Path) -> None:
    """Copy the weights of a folder into our decoder, a tensor at a time.

    Args:
        state: The tensors of our decoder by name, which are overwritten.
        architecture: The folder's.
        shape: Our decoder, which it fits.
        folder: A folder without shape faults.

    Raises:
        ValueError: A tensor means something that our decoder lacks, such as a bias; the message begins with its name.
        DamagedFileError, SafetensorError, OSError: A file cannot be read.
    """
    files = [safe_open(path, framework="pt") for path in weight_files(folder)]
    places = {name: file for file in files for name in list(file.keys())}
    filled: set[str] = set()
    for rule in rules(architecture, shape):
        tensor = places[rule.native].get_tensor(rule.native).float()
        try:
            parts = rule.to_ours(tensor)
        except ValueError as error:
            raise ValueError(f"{rule.native} {error}") from None
        for name, part in parts.items():
            if name in filled and not torch.equal(state[name], part.to(state[name].dtype)):
                raise ValueError(f"{rule.native} differs from that of another head, and this decoder has one for all")
            state[name].copy_(part)
            filled.add(name)
