"""A sweep as a SLURM array: a task per member that is not finished, each an ordinary run in an ordinary folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.slurm import cluster, slurm
from launch.sweep.members import Member, Sweep
from train.config.batch import check_world_size
from train.config.errors import ConfigError


def submit(sweep: Sweep, found: Sequence[Member], *, file: str, at_once: int | None, about: str, dry_run: bool) -> int:
    """Submit what is not finished; returns the exit code.

    Args:
        sweep: The sweep; instead of its `ranks` the cluster file says what to ask for.
        found: Its members.
        file: The cluster file.
        at_once: Tasks that run at a time; None: as many as the cluster gives.
        about: What a person typed.
        dry_run: Print the batch script, submit nothing.

    Raises:
        ConfigError: What was given is wrong: nothing was submitted then.
    """
    where = cluster.load(file)
    left = [member for member in found if not member.is_finished]
    if not left:
        print(f"{sweep.name}: all {len(found)} members are finished")
        return 0
    faults = [fault for member in left for fault in _faults(member, where)]
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    try:
        for member in left:
            slurm.refuse(member.config)
        slurm.check_here(left[0].arguments, where)  # they share data, tokenizer and shapes but for what is swept
        done = slurm.submit(
            [member.config for member in left],
            where,
            folder=left[0].folder.parent.absolute(),
            name=sweep.name,
            about=about,
            array=True,
            at_once=at_once,
            dry_run=dry_run,
        )
    except (slurm.SlurmError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if done.job is None:
        print(done.text)
        return 0
    passed_over = f", {len(found) - len(left)} finished before" if len(left) < len(found) else ""
    print(f"{sweep.name}: {len(left)} tasks{passed_over}")
    print(slurm.followed(done, where))
    print("report      the same command without --cluster, once all are done")
    return 0


def _faults(member: Member, where: cluster.ClusterConfig) -> list[str]:
    try:
        check_world_size(member.config, where.nodes * where.ranks)
    except ConfigError as error:
        return [f"nodes: {where.nodes} with {where.ranks} ranks each: {fault}" for fault in error.faults]
    return []
