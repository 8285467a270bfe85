"""Submission of a sweep as a SLURM array: one task per unfinished member, each an ordinary run in its own folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.slurm import cluster, slurm
from launch.sweep.members import Member, RunMember, representatives, runs_of
from launch.sweep.sweep_file import Sweep
from train.config.batch import check_world_size
from train.config.errors import ConfigError


def submit(
    sweep: Sweep, members: Sequence[Member], *, file: str, at_once: int | None, about: str, dry_run: bool
) -> int:
    """Submit the unfinished members of a sweep; return the exit code.

    Args:
        sweep: The sweep; the cluster file replaces its `ranks`.
        members: Members of the sweep.
        file: Cluster file.
        at_once: Limit on concurrent tasks; None: no limit.
        about: The command that the user typed.
        dry_run: Print the batch script and submit nothing.

    Raises:
        ConfigError: The cluster file is invalid or does not fit a member, or a member comes after another; nothing is
            submitted.
    """
    where = cluster.load(file)
    _refuse_chains(members)
    left = [member for member in runs_of(members) if not member.is_finished]
    if not left:
        print(f"{sweep.name}: all {len(members)} members are finished")
        return 0
    faults = [fault for member in left for fault in _faults(member, where)]
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    try:
        for member in left:
            slurm.refuse(member.config)
        for member in representatives(left):
            slurm.check_here(member.arguments, where)
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
    skipped = f", {len(members) - len(left)} already finished" if len(left) < len(members) else ""
    print(f"{sweep.name}: {len(left)} tasks{skipped}")
    print(slurm.next_commands(done, where))
    print("report      run the same command without --cluster once all tasks are finished")
    return 0


def _refuse_chains(members: Sequence[Member]) -> None:
    """Refuse members that come after others: the tasks of an array start in any order."""
    names = [f"{member.name} comes after {member.after.name}" for member in members if member.after is not None]
    if names:
        more = f" ({len(names) - 1} more like it)" if len(names) > 1 else ""
        raise ConfigError(
            [
                f"--cluster: {names[0]}{more}, but the tasks of a SLURM array start in any order; submit the runs of a "
                "stage with `python -m launch slurm` (--dry-run without --cluster lists their settings), then those "
                "of the next, or start the sweep without --cluster inside one job"
            ]
        )


def _faults(member: RunMember, where: cluster.ClusterConfig) -> list[str]:
    try:
        check_world_size(member.config, where.nodes * where.ranks)
    except ConfigError as error:
        return [f"nodes: {where.nodes} with {where.ranks} ranks each: {fault}" for fault in error.faults]
    return []
