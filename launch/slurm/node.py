"""One node's share of a SLURM job: `srun python -m launch.slurm.node CONFIG --head HOST --ranks N`, once on every node.

The batch script names the head node, since a container has no scontrol. Nothing here falls back on this machine alone:
N nodes that do not find each other would train N runs in one folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from launch import ranks
from train.config.batch import check_world_size
from train.config.errors import ConfigError
from train.config.load import load


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run this node's ranks; returns their exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.node", description="Train on a node of a SLURM job.")
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("--head", required=True, help="host name of the job's first node")
    parser.add_argument("--ranks", required=True, type=int, help="ranks on this node")
    given = parser.parse_args(arguments)
    try:
        config = load(given.config)
        nodes = job_nodes(given.head, environment)
        check_world_size(config, given.ranks * (nodes.size if nodes else 1))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    command = ranks.training_command([given.config], ranks=given.ranks, nodes=nodes)
    return ranks.run(command, run_folder=config.folder)


def job_nodes(head: str, environment: Mapping[str, str]) -> ranks.Nodes | None:
    """Return where the nodes of this job step meet; None where there is one node only.

    Args:
        head: Host name of the first node.
        environment: What SLURM says of the step. In a batch script without srun there is no step.

    Raises:
        ConfigError: Not in a step with one task per node.
    """
    try:
        nodes, tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
        job, restart = environment["SLURM_JOB_ID"], environment.get("SLURM_RESTART_COUNT", "0")
    except (KeyError, ValueError):
        raise ConfigError(["launch.slurm.node: not in a step of a SLURM job; run `python -m launch slurm`"]) from None
    if nodes != tasks or not head:
        raise ConfigError(
            [f"launch.slurm.node: {tasks} tasks on {nodes} nodes, head {head!r}; srun must start one task on each node"]
        )
    if nodes == 1:
        return None
    return ranks.Nodes(
        size=nodes,
        head=head,
        port=meeting_port(int(job)),
        job=f"{job}-{restart}",
        is_head=environment.get("SLURM_NODEID") == "0",
    )


def meeting_port(job: int) -> int:
    """Return a port of the job's own, below those that Linux gives away by itself (32768 and up)."""
    return 20_000 + job % 10_000


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
