"""Per-node entry point of a SLURM job: `srun python -m launch.slurm.node CONFIG --head HOST --ranks N` on every node.

The batch script passes the head node, since scontrol is not available in a container. There is no fallback to
single-node training: N nodes that fail to find each other would train N runs in one folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from launch import ranks
from launch.slurm.evidence import note_node
from launch.slurm.job import restart_count, start_id
from train.config.batch import check_world_size
from train.config.errors import ConfigError
from train.config.load import load


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run this node's ranks; return their exit code, which is also recorded in the run folder."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.slurm.node", description="Train on one node of a SLURM job."
    )
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("--head", required=True, help="host name of the job's first node")
    parser.add_argument("--ranks", required=True, type=int, help="ranks on this node")
    options = parser.parse_args(arguments)
    try:
        config = load(options.config)
        nodes = job_nodes(options.head, environment)
        check_world_size(config, options.ranks * (nodes.size if nodes else 1))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    command = ranks.training_command([options.config], ranks=options.ranks, nodes=nodes)
    code = ranks.run(command, run_folder=config.folder)
    note_node(config.folder, environment["SLURMD_NODENAME"], start=start_id(environment), code=code)
    return code


def job_nodes(head: str, environment: Mapping[str, str]) -> ranks.Nodes | None:
    """Return the rendezvous of this job step's nodes, or None if there is only one node.

    Args:
        head: Host name of the first node.
        environment: Environment variables, with SLURM's for this step. Without srun, a batch script has no step.

    Raises:
        ConfigError: This is not a job step with one task per node.
    """
    try:
        nodes, tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
        job = environment["SLURM_JOB_ID"]
    except (KeyError, ValueError):
        raise ConfigError(["launch.slurm.node: not in a step of a SLURM job; use `python -m launch slurm`"]) from None
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
        job=f"{job}-{restart_count(environment)}",
        is_head=environment.get("SLURM_NODEID") == "0",
    )


def meeting_port(job: int) -> int:
    """Return a port derived from the job id, below Linux's ephemeral range (32768 and up)."""
    return 20_000 + job % 10_000


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
