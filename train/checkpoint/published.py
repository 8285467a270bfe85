"""Choice of a published checkpoint: the newest that is intact, or the one that was named; nothing is believed unread.

Only a training run sets damaged checkpoints aside (`newest_intact`); readers leave the folder as it is
(`intact_checkpoint`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from train.config.errors import ConfigError
from train.config.facts.manifest import damage, files_of, is_intact, mismatch, read_manifest
from train.config.facts.run_layout import CHECKPOINTS, complete_steps, step_name
from train.config.facts.sealed import DamagedFileError
from train.ranks.distributed import World, all_agree, gather_floats, sum_over_ranks

# ---------------------------------------------------------------------------------------------------- a training run


def newest_intact(folder: Path, *, world: World) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint whose checksums match; the ranks divide the reading and agree on the result.

    Damaged checkpoints are renamed to `step_*.damaged` and ignored.

    Returns:
        The checkpoint or None, and a message for each ignored checkpoint.
    """
    ignored: list[str] = []
    # Rank 0's view of the folder decides, as a network file system may show each rank a different one.
    steps = complete_steps(folder) if world.is_main else []
    for index in range(int(gather_floats(len(steps))[0])):
        step = int(gather_floats(steps[-1 - index] if world.is_main else 0)[0])
        checkpoint = folder / step_name(step)
        faults = damage_seen_by_all(checkpoint, world=world)
        if not faults:
            return checkpoint, ignored
        ignored.append(f"{step_name(step)} is damaged and was ignored: {'; '.join(faults)}")
        if world.is_main:
            _set_aside(checkpoint)
    return None, ignored


def damage_seen_by_all(checkpoint: Path, *, world: World) -> list[str]:
    """Return the faults of a checkpoint; the ranks divide the reading."""
    manifest, fault = None, "its manifest cannot be read by another rank"
    try:
        manifest = read_manifest(checkpoint)
    except DamagedFileError as error:
        fault = str(error)
    if not all_agree(manifest is not None):
        return [fault]
    assert manifest is not None
    files = files_of(manifest)
    broken = torch.zeros(len(files))
    for index in range(world.rank, len(files), world.size):
        broken[index] = not is_intact(checkpoint, files[index])
    sum_over_ranks(broken)
    return [mismatch(file) for file, bad in zip(files, broken, strict=True) if bad]


def _set_aside(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


# ----------------------------------------------------------------------------------------------------------- readers


def intact_checkpoint(run: Path, step: int | None) -> tuple[Path, list[str]]:
    """Return a run's checkpoint for a step, by default the newest that is intact; every byte of it is verified.

    Returns:
        The checkpoint, and a message for each newer one that is damaged.

    Raises:
        ConfigError: There is no such checkpoint, the one that was named is damaged, or all are.
    """
    folder = run / CHECKPOINTS
    steps = complete_steps(folder)
    if not steps:
        raise ConfigError([f"{run}: has no complete checkpoint"])
    available = ", ".join(map(str, steps))
    if step is not None and step not in steps:
        raise ConfigError([f"--step {step}: {run} has no such checkpoint; available steps: {available}"])
    ignored: list[str] = []
    for candidate in reversed(steps) if step is None else [step]:
        checkpoint = folder / step_name(candidate)
        faults = damage(checkpoint)
        if not faults:
            return checkpoint, [f"{message}; step {candidate} is used instead" for message in ignored]
        ignored.append(f"{checkpoint} is damaged: {'; '.join(faults)}")
    if step is not None:
        raise ConfigError([f"--step {step}: {ignored[0]}; choose another of the steps {available}, or omit --step"])
    raise ConfigError([f"{run}: has no intact checkpoint", *ignored])
