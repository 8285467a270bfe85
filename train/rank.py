"""One rank of a training run: its process group, its watchdog, what ends it, and the exit code that this means."""

from __future__ import annotations

import logging
import os

from train.assemble import assemble
from train.checkpoint.checkpoint import CheckpointError
from train.config.batch import check_world_size
from train.config.facts.exit_codes import STOPPED_EARLY
from train.config.run import RunConfig
from train.loop import Run, TooManySkippedStepsError, fit
from train.ranks import distributed
from train.ranks.stopping import StopSignal, note_stopped
from train.watchdog.watchdog import Watchdog

logger = logging.getLogger(__name__)


def run_process(config: RunConfig, stop: StopSignal) -> int:
    """Train this rank as the one thing that the process does: logging, leaving the process group, errors.

    Args:
        config: The run.
        stop: Listening to the signals to this process.

    Returns:
        The exit code: as `train_rank`, or 1 where the run could not go on, for the reason logged.

    Raises:
        ConfigError: The launcher's number of ranks, the data or a checkpoint do not fit the configuration.
        StoppedInPreparationError: A signal came before the first step.
    """
    with stop.preparing():
        check_world_size(config, distributed.world_size_from_environment())
        distributed.set_up_logging()
    try:
        return train_rank(config, stop)
    except (CheckpointError, TooManySkippedStepsError) as error:
        logger.error("%s", error)
        return 1
    except OSError as error:
        logger.error("%s; nothing that was saved is lost: start the same command again", error)
        return 1
    finally:
        distributed.stop()


def train_rank(config: RunConfig, stop: StopSignal | None = None) -> int:
    """Assemble the run on this rank and fit it, under a watchdog; leaves the process group as it is.

    Args:
        config: The run.
        stop: Listening to the signals to this process; None: nobody does.

    Returns:
        The exit code: 0, or 75 where the run stopped early with a checkpoint saved.

    Raises:
        StoppedInPreparationError: A signal came before the first step.
    """
    stop = stop or StopSignal()
    size = distributed.world_size_from_environment()
    rank = int(os.environ["RANK"]) if size > 1 else 0
    with Watchdog(config.watchdog, config.folder, rank=rank, size=size) as watchdog:
        with stop.preparing():
            run = assemble(config, stop, watchdog)
        is_finished = _fit(run)
        _conclude(run, is_finished=is_finished)
        return 0 if is_finished else STOPPED_EARLY


def _fit(run: Run) -> bool:
    """Fit the run and close its files, whatever happens; returns whether it came to its end."""
    try:
        is_finished = fit(run)
        run.stop.is_saved()
        if is_finished:
            run.log.event("finish", step=run.progress.step)
    finally:
        run.saver.close()
        run.log.close()
    return is_finished


def _conclude(run: Run, *, is_finished: bool) -> None:
    """Log how the run ended, note an early stop in its folder, and release the engine."""
    if is_finished:
        logger.info("done: %s (tensorboard --logdir %s)", run.folder, run.config.output_dir)
    else:
        if run.world.is_main:
            note_stopped(run.folder, step=run.progress.step, name=run.stop.name or "signal to another rank")
        distributed.all_agree(True)  # none leaves before that is noted: launchers end all ranks with the first
        logger.info("stopped after step %d, which is saved; start the same command again", run.progress.step)
    run.engine.close()
