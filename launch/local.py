"""Training on this machine: `python -m launch local CONFIG [key=value ...] [--ranks N]`."""

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
    """Run the command; return the ranks' exit code.

    Raises:
        ConfigError: The arguments or the configuration are invalid.
    """
    parser = argparse.ArgumentParser(
        prog="python -m launch local",
        description="Train on this machine, with one process per GPU, or one per two cores if there is no GPU.",
    )
    parser.add_argument("config", help="YAML file, e.g. configs/language_model/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to override, e.g. optim.lr=3e-4")
    parser.add_argument("--ranks", type=int, help="number of processes (default: one per GPU, else one per two cores)")
    options = parser.parse_intermixed_args(arguments)
    config = load(options.config, options.overrides)
    num_ranks = options.ranks if options.ranks is not None else default_ranks(config)
    if num_ranks < 1:
        raise ConfigError([f"--ranks: {num_ranks} is too small; write 1 or more"])
    check_world_size(config, num_ranks)
    command = ranks.training_command([options.config, *options.overrides], ranks=num_ranks)
    print("$", ranks.shell_line(command), flush=True)
    return ranks.run(command, run_folder=config.folder)


def default_ranks(config: RunConfig) -> int:
    """Return the default number of ranks: at most one per GPU (or per two cores), and a divisor of the global batch."""
    most = len(gpu_names()) or max(1, len(os.sched_getaffinity(0)) // 2)
    return next(number for number in range(most, 0, -1) if config.global_batch_size % number == 0)


def gpu_names() -> list[str]:
    """Return the NVIDIA GPUs this process may use, named as in CUDA_VISIBLE_DEVICES, without querying the driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
