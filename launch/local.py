"""`python -m launch local CONFIG [key=value ...] [--ranks N]`: train on this machine."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from launch import ranks
from train.config.batch import check_world_size
from train.config.errors import ConfigError
from train.config.load import load
from train.config.run import RunConfig


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the ranks' exit code.

    Raises:
        ConfigError: What was given is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch local",
        description="Train on this machine, with as many processes as it has GPUs, or a share of its cores each.",
    )
    parser.add_argument("config", help="a YAML file, like configs/language_model/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, like optim.lr=3e-4")
    parser.add_argument("--ranks", type=int, help="processes (default: one per GPU; without one, one per two cores)")
    given = parser.parse_intermixed_args(arguments)
    config = load(given.config, given.overrides)
    num_ranks = given.ranks if given.ranks is not None else default_ranks(config)
    if num_ranks < 1:
        raise ConfigError([f"--ranks: {num_ranks} is too small; write 1 or more"])
    check_world_size(config, num_ranks)
    command = ranks.training_command([given.config, *given.overrides], ranks=num_ranks)
    print("$", ranks.shown(command), flush=True)
    return ranks.run(command, run_folder=config.folder)


def default_ranks(config: RunConfig) -> int:
    """Return how many ranks this machine is good for: those that divide the global batch, one per GPU or two cores."""
    most = len(gpu_names()) or max(1, len(os.sched_getaffinity(0)) // 2)
    return next(number for number in range(most, 0, -1) if config.global_batch_size % number == 0)


def gpu_names() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; asks no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
