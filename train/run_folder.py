"""A run's folder: what was asked, on which machine, and whether the same run may go on in it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from train.config.run import ConfigError, RunConfig, differences, load, to_yaml

if TYPE_CHECKING:  # a finished run is recognised before torch is imported
    from train.ranks.distributed import World

_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "numpy")


def run_folder(config: RunConfig) -> Path:
    """Return where a run lives."""
    return Path(config.output_dir) / config.name


def read_run(folder: Path) -> RunConfig:
    """Return the configuration of a run folder.

    Raises:
        ConfigError: It is no run folder.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError([f"{folder}: not a run folder (it has no config.yaml); give one like runs/NAME"])
    return load(folder / "config.yaml")


def is_finished(config: RunConfig) -> bool:
    """Return whether the last step is saved, and evaluated: a signal may have come in between."""
    folder = run_folder(config)
    try:
        saved = json.loads((folder / "checkpoints" / f"step_{config.steps:06d}" / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    return saved.get("evaluated", config.steps) == config.steps or _said_so(folder / "events.jsonl", config.steps)


def _said_so(events: Path, steps: int) -> bool:
    """Return whether the last event is the end of the run."""
    try:
        last = json.loads(events.read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return False
    return last["event"] == "finish" and last["step"] == steps


def refuse_another_config(config: RunConfig) -> None:
    """Let a run folder be used only by the run that began in it.

    Raises:
        ConfigError: With every difference that may not be at a resume.
    """
    folder = run_folder(config)
    path = folder / "config.yaml"
    if not path.exists():
        return
    faults = differences(yaml.safe_load(path.read_text()), config)
    if faults:
        advice = f"{folder} holds another run: go on with its values, or choose another name (name=...)"
        raise ConfigError([advice, *faults])


def write_config(config: RunConfig) -> None:
    """Write config.yaml: what was asked, defaults filled in."""
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "config.yaml", to_yaml(config))


def write_environment(folder: Path, *, world: World, precision: str, facts: Mapping[str, Any]) -> None:
    """Write environment.json: code, versions, host, device, what `auto` became; no variables of the environment."""
    import torch

    described = {
        **_code(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "host": socket.gethostname(),
        "world_size": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else _processor(),
        "threads_per_rank": torch.get_num_threads(),
        "precision": precision,
        "data": dict(facts),
    }
    _replace(folder / "environment.json", json.dumps(described, indent=1) + "\n")


def write_deepspeed_config(folder: Path, described: Mapping[str, Any]) -> None:
    """Write deepspeed.json: the configuration that DeepSpeed really runs with."""
    _replace(folder / "deepspeed.json", json.dumps(described, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _code() -> dict[str, Any]:
    """Return the commit of this code, and whether it was changed since; a snapshot of `launch slurm` knows its own."""
    root = Path(__file__).resolve().parents[1]
    if (root / "snapshot.json").exists():
        return json.loads((root / "snapshot.json").read_text())
    return {"git_sha": _git(root, "rev-parse", "HEAD"), "git_dirty": bool(_git(root, "status", "--porcelain"))}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(root), *arguments]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _processor() -> str:
    return platform.processor() or platform.machine()
