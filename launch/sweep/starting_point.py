"""Checks of a run that starts from a checkpoint of the run before it, which may not exist yet."""

from __future__ import annotations

from collections.abc import Iterator

from launch.sweep.chain import OUTPUT
from train.config.facts.folders import named_checkpoint
from train.config.facts.run_layout import CHECKPOINTS, complete_steps
from train.config.run import RunConfig

_KEY = "checkpoint.start_from"


def faults(config: RunConfig, before: RunConfig) -> Iterator[str]:
    """Yield why a run cannot start from the checkpoint that it names of the run before it.

    Training would refuse it as well, but only once the run before is finished.
    """
    start, last = config.checkpoint.start_from, before.steps
    if start is None or complete_steps(config.folder / CHECKPOINTS):  # it resumes from a checkpoint of its own
        return
    if start == str(before.folder):
        yield f"{_KEY}: {OUTPUT} is a run folder; add the step, {OUTPUT}@{last}"
    run, step = named_checkpoint(start) or ("", 0)
    if run != str(before.folder):
        return
    if step not in complete_steps(before.folder / CHECKPOINTS) and not _will_keep(before, step):
        every, keep = before.checkpoint.every, before.checkpoint.keep
        saved = f"checkpoint.every {every}" + (f", checkpoint.keep {keep}" if keep is not None else "")
        yield f"{_KEY}: {before.name} keeps no checkpoint of step {step} (steps {last}, {saved}); write {OUTPUT}@{last}"
    if step >= config.steps:
        yield f"steps: {config.steps} leave nothing to train after step {step} of {before.name}; raise steps"


def _will_keep(config: RunConfig, step: int) -> bool:
    """Return whether a run that is not interrupted has the checkpoint of a step at its end."""
    last, every, keep = config.steps, config.checkpoint.every, config.checkpoint.keep
    if step >= last or step < 1:
        return step == last
    num_later = (last - 1) // every - step // every + 1  # the last step is always saved
    return step % every == 0 and (keep is None or num_later < keep)
