"""Loading of run configurations: YAML and overrides, validated together.

`load` is the only entry point. It reports every fault in a configuration at once, each with its path. Nothing here
imports torch, so a login node can validate a run in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from train.config import yaml_text
from train.config.errors import ConfigError
from train.config.facts.run_layout import CONFIG
from train.config.rules import broken_rules
from train.config.run import RunConfig
from train.config.schema import check

Section = TypeVar("Section")


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a run from a YAML file and `a.b=c` overrides, and validate it as a whole.

    Args:
        path: The YAML file.
        overrides: `key.path=value` each, the value in YAML: `optim.lr=3e-4`, `optim.betas=[0.9, 0.99]`,
            `optim.gradient_clipping=null`. Mappings are merged; any other value replaces the old one.

    Raises:
        ConfigError: With every fault.
    """
    return _loaded(yaml_text.read(path, overrides))


def load_tree(tree: dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Load a run from plain values and overrides, as `load` does from a file; the overrides change the tree.

    Raises:
        ConfigError: With every fault.
    """
    return _loaded(yaml_text.overridden(tree, overrides))


def _loaded(text: yaml_text.Document) -> RunConfig:
    if text.tree is None:
        raise ConfigError(text.faults)
    config, leaves, faults = check(RunConfig, text.tree)
    faults = [*text.faults, *faults, *broken_rules(leaves)]
    if config is None or faults:
        raise ConfigError(faults)
    return config


def load_settings(section: type[Section], overrides: Sequence[str]) -> Section:
    """Return the settings of a command, a section of its own, from `key=value` words.

    Raises:
        ConfigError: With every fault.
    """
    text = yaml_text.overridden({}, overrides)
    settings, _, faults = check(section, text.tree or {})
    if settings is None or faults or text.faults:
        raise ConfigError([*text.faults, *faults])
    return settings


def read_run(folder: Path) -> RunConfig:
    """Return the configuration of a run folder.

    Raises:
        ConfigError: The folder is not a run folder, or its configuration is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError([f"{folder}: not a run folder (it has no config.yaml); pass one like runs/NAME"])
    try:
        return load(folder / CONFIG)
    except ConfigError as error:
        advice = f"{folder / CONFIG} is damaged, or was written by another version:"
        raise ConfigError([advice, *error.faults]) from None


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a run as plain values, with defaults filled in."""
    return asdict(config)


def to_yaml(config: RunConfig) -> str:
    """Return a run as YAML, with defaults filled in; `load` reads it back as an equal configuration."""
    return yaml_text.to_yaml(to_dict(config))
