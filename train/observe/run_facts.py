"""Records of a run in its folder: configuration, settings, machine and code."""

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

from train.config.facts import run_layout
from train.config.load import to_yaml
from train.config.report_facts import report_facts
from train.config.run import RunConfig

if TYPE_CHECKING:  # a finished run is recognized before torch is imported
    from train.data.budget import Budget
    from train.observe.attention import Choice
    from train.ranks.distributed import World

_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "numpy")


def write_config(config: RunConfig) -> None:
    """Write config.yaml, the configuration with defaults filled in, and settings.json."""
    config.folder.mkdir(parents=True, exist_ok=True)
    _replace(config.folder / run_layout.CONFIG, to_yaml(config))
    _replace(config.folder / run_layout.SETTINGS, json.dumps(report_facts(config), indent=1) + "\n")


def write_environment(
    folder: Path,
    *,
    world: World,
    precision: str,
    attention: Choice | None,
    facts: Mapping[str, Any],
    budget: Budget,
) -> None:
    """Write environment.json: code, versions, host, device, resolved precision, kernel of attention, data, budget.

    No environment variables.
    """
    import torch

    environment = {
        **_code(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "host": socket.gethostname(),
        "world_size": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else _processor(),
        "threads_per_rank": torch.get_num_threads(),
        "precision": precision,
        "attention": None if attention is None else attention._asdict(),
        "parameters": budget.parameters,
        "data": dict(facts),
        "budget": budget.facts(),
    }
    _replace(folder / "environment.json", json.dumps(environment, indent=1) + "\n")


def write_deepspeed_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write deepspeed.json: the configuration that DeepSpeed actually uses."""
    _replace(folder / "deepspeed.json", json.dumps(config, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _code() -> dict[str, Any]:
    """Return the commit and whether there are uncommitted changes; in a `launch slurm` snapshot, as recorded there."""
    root = Path(__file__).resolve().parents[2]
    if (root / "snapshot.json").exists():
        return json.loads((root / "snapshot.json").read_text())
    return {"git_sha": _git(root, "rev-parse", "HEAD"), "git_dirty": bool(_git(root, "status", "--porcelain"))}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(root), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _processor() -> str:
    return platform.processor() or platform.machine()
