"""The configuration that a Hugging Face folder fits: `python -m train.convert FOLDER`.

Prints YAML that `python -m train` loads as it is: the decoder, the folder as starting point, and its tokenizer.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from modeling.decoder.facts_periln import DecoderShape
from train.config import yaml_text
from train.config.errors import ConfigError
from train.config.facts.native_config import OWN, meaning
from train.config.facts.run_layout import read_json
from train.config.facts.sealed import DamagedFileError
from train.config.facts.weight_files import saved_shapes, shape_faults
from train.config.tasks.language_model import EMBEDDED_CORPUS

_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
_LONGEST_WINDOW = 1024  # tokens, of the windows that the printed configuration trains on


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.convert", description="Print the configuration that a Hugging Face folder fits."
    )
    parser.add_argument("folder", type=Path, help="folder with config.json and safetensors")
    try:
        print(configuration(parser.parse_args(arguments).folder), end="")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def configuration(folder: Path) -> str:
    """Return a configuration that continues to train a folder's model, as YAML.

    Raises:
        ConfigError: The folder is missing or damaged, or its model is not one of our decoders.
    """
    _require_folder(folder)
    config = read_json(folder / "config.json")
    if config is None:
        raise ConfigError([f"{folder / 'config.json'}: is missing or no JSON object; copy the folder again"])
    model = _own(folder, config) if config.get("model_type") == OWN else _native(folder, config)
    lines = [
        f"# task.model and checkpoint.start_from are those of {folder} ({model.name}).",
        "# The other values are examples: choose text, lengths, batch and learning rate.",
    ]
    if not any((folder / file).exists() for file in _TOKENIZERS):
        lines.append(f"# {folder} contains no tokenizer: write the one that the model was trained with.")
    tree = {
        "name": re.sub("[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:80] or "converted",
        "steps": 1000,
        "global_batch_size": 32,
        "micro_batch_size": 4,
        "task": {
            "kind": "language_model",
            "model": model.settings,
            "data": {
                "sources": [EMBEDDED_CORPUS],
                "tokenizer": str(folder),
                "sequence_length": min(_LONGEST_WINDOW, model.settings["max_position_embeddings"]),
            },
        },
        "optim": {"lr": 1e-4},
        "checkpoint": {"start_from": str(folder)},
    }
    return "\n".join([*lines, yaml_text.to_yaml(tree)])


class _Model(NamedTuple):
    """A folder's model: its class, and its settings `task.model.*`."""

    name: str
    settings: dict[str, Any]


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError([f"{folder}: no such folder; pass one with config.json and safetensors"])
    if not any(folder.glob("*.safetensors")):
        raise ConfigError([f"{folder}: contains no .safetensors file; save the model with transformers again"])


def _native(folder: Path, config: Mapping[str, Any]) -> _Model:
    found = meaning(config)
    if found.architecture is None or found.shape is None:
        raise ConfigError([f"{folder / 'config.json'}: {fault}" for fault in found.faults])

    from train.convert.folder import expected_shapes  # imports torch, which takes seconds

    is_tied = found.architecture.is_tied(found.shape)
    _require_weights(folder, expected_shapes(found.architecture, found.shape), is_tied=is_tied)
    return _Model(found.architecture.class_name, found.settings)


def _own(folder: Path, config: Mapping[str, Any]) -> _Model:
    settings = {each.name: config[each.name] for each in fields(DecoderShape) if each.name in config}

    from train.convert.folder import own_shapes

    try:
        shapes = own_shapes(settings)
    except (TypeError, ValueError) as error:
        raise ConfigError([f"{folder / 'config.json'}: {fault}" for fault in str(error).splitlines()]) from None
    _require_weights(folder, shapes, is_tied=bool(settings.get("tie_word_embeddings")))
    return _Model("this project's decoder", settings)


def _require_weights(folder: Path, shapes: Mapping[str, list[int]], *, is_tied: bool) -> None:
    try:
        faults = list(shape_faults(saved_shapes(folder), shapes, is_tied=is_tied))
    except DamagedFileError as error:
        raise ConfigError([str(error)]) from None
    if faults:
        raise ConfigError([f"{folder}: {fault}" for fault in faults])


if __name__ == "__main__":
    sys.exit(main())
