"""Weights of a decoder written as those of an architecture of transformers: safetensors, a shard at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from train.checkpoint.checkpoint import CheckpointReader
from train.convert.rules import EMBEDDING, HEAD, Rule
from train.convert.steps import Read

SHARD_BYTES = 2 * 2**30  # of which one is in memory; transformers' own 50 GB would be the whole model


def tensors_of(checkpoint: Path) -> Read:
    """Return a function that reads a tensor of a checkpoint by its name in the model's state dict, in fp32."""
    reader = CheckpointReader(checkpoint)
    parameters, buffers = reader.manifest["parameters"], reader.buffers()

    def read(name: str) -> Tensor:
        if name in buffers:  # a frozen scale
            return buffers[name].float()
        return reader.whole("weight", EMBEDDING if name == HEAD and HEAD not in parameters else name).float()

    return read


def write_weights(
    folder: Path, rules: list[Rule], read: Read, *, shapes: Mapping[str, Tensor], dtype: torch.dtype, shard_bytes: int
) -> None:
    """Write the architecture's tensors; in memory are those of one shard, and one more while it is computed.

    Args:
        folder: An existing folder.
        rules: The mapping.
        read: Returns a tensor of ours by name.
        shapes: Ours on the meta device.
        dtype: Type on disk.
        shard_bytes: Largest size of a file, unless it contains a single tensor.
    """
    sizes = {rule: rule.to_native(shapes.__getitem__).numel() * dtype.itemsize for rule in rules}
    shards = _shards(sizes, shard_bytes)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        # Copied: of several heads' equal norms, each needs memory of its own.
        tensors = {rule.native: rule.to_native(read).to(dtype, copy=True) for rule in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})  # read by transformers
    if len(shards) > 1:
        files = {rule.native: name for name, shard in zip(names, shards, strict=True) for rule in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(files.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(sizes: Mapping[Rule, int], most: int) -> list[list[Rule]]:
    """Divide the tensors, in order, into files of at most this many bytes."""
    shards: list[list[Rule]] = [[]]
    filled = 0
    for rule, size in sizes.items():
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(rule)
        filled += size
    return shards


def tensors_in(folder: Path) -> Read:
    """Return a function that reads a tensor of a folder's safetensors by name, in fp32; tied heads too."""
    files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
    places = {name: file for file in files for name in list(file.keys())}

    def read(name: str) -> Tensor:
        name = EMBEDDING if name == HEAD and HEAD not in places else name
        return places[name].get_tensor(name).float()

    return read
