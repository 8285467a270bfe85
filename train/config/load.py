"""Reading a run: YAML and overrides, checked as a whole.

`load` is the only way in. It reports everything that is wrong with a configuration at once, each fault with its path.
Nothing here imports torch, so that a login node can check a run in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train.config import yaml_text
from train.config.errors import ConfigError
from train.config.facts.run_layout import CONFIG
from train.config.rules import broken_rules
from train.config.run import RunConfig
from train.config.schema import check


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run from a YAML file and `a.b=c` overrides, and check it as a whole.

    Args:
        path: The YAML file.
        overrides: `key.path=value` each, the value in YAML: `optim.lr=3e-4`, `optim.betas=[0.9, 0.99]`,
            `optim.gradient_clipping=null`. A mapping is merged, everything else replaces.

    Raises:
        ConfigError: Everything that is wrong, at once.
    """
    text = yaml_text.read(path, overrides)
    if text.tree is None:
        raise ConfigError(text.faults)
    config, leaves, faults = check(RunConfig, text.tree)
    faults = [*text.faults, *faults, *broken_rules(leaves)]
    if config is None or faults:
        raise ConfigError(faults)
    return config


def read_run(folder: Path) -> RunConfig:
    """Return the configuration of a run folder.

    Raises:
        ConfigError: It is no run folder.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError([f"{folder}: not a run folder (it has no config.yaml); give one like runs/NAME"])
    return load(folder / CONFIG)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a run as plain values, defaults filled in."""
    return asdict(config)


def to_yaml(config: RunConfig) -> str:
    """Return a run as YAML, defaults filled in; `load` reads it back to an equal one."""
    return yaml_text.to_yaml(to_dict(config))
