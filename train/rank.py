"""Lifecycle of one rank: logging, process group, watchdog, errors and exit code."""

from __future__ import annotations

import logging
import os

from train.assemble import assemble
from train.checkpoint.checkpoint import CheckpointError
from train.config.batch import check_world_size
from train.config.facts.exit_codes import STOPPED_EARLY
from train.config.run import RunConfig
from train.data.damage import DamagedDataError
from train.loop import Run, TooManySkippedStepsError, fit
from train.ranks import distributed
from train.ranks.garbage import no_automatic_collection
from train.ranks.stopping import StopSignal, note_stopped
from train.ranks.watchdog.watchdog import Watchdog

logger = logging.getLogger(__name__)


def run_process(config: RunConfig, stop: StopSignal) -> int:
    """Train this rank in a process of its own: set up logging, handle errors, leave the process group.

    Args:
        config: The run.
        stop: Receives the signals to this process.

    Returns:
        The exit code of `train_rank`, or 1 if the run failed; the reason is logged.

    Raises:
        ConfigError: The world size, the data or a checkpoint does not fit the configuration.
        StoppedInPreparationError: A signal arrived before the first step.
    """
    with stop.preparing():
        check_world_size(config, distributed.world_size_from_environment())
        distributed.set_up_logging()
    try:
        return train_rank(config, stop)
    except (CheckpointError, DamagedDataError, TooManySkippedStepsError) as error:
        logger.error("%s", error)
        return 1
    except OSError as error:
        logger.error("%s; saved checkpoints are intact: run the same command again to resume", error)
        return 1
    finally:
        distributed.stop()


def train_rank(config: RunConfig, stop: StopSignal | None = None) -> int:
    """Assemble and fit the run on this rank under a watchdog, without leaving the process group.

    Args:
        config: The run.
        stop: Receives the signals to this process; None if signals are not handled.

    Returns:
        The exit code: 0, or 75 if the run stopped early with a checkpoint saved.

    Raises:
        StoppedInPreparationError: A signal arrived before the first step.
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
    """Fit the run and close its files in any case; return whether the run is finished."""
    try:
        with no_automatic_collection():
            is_finished = fit(run)
        run.stop.mark_saved()
        if is_finished:
            run.log.event("finish", step=run.progress.step)
    finally:
        run.saver.close()
        run.log.close()
    return is_finished


def _conclude(run: Run, *, is_finished: bool) -> None:
    """Log the outcome, record an early stop in the run folder, and release the engine."""
    if is_finished:
        logger.info("done: %s (tensorboard --logdir %s)", run.folder, run.config.output_dir)
    else:
        if run.world.is_main:
            note_stopped(run.folder, step=run.progress.step, name=run.stop.name or "signal to another rank")
        distributed.all_agree(
            True
        )  # no rank leaves before that is written: launchers terminate all ranks with the first
        logger.info("stopped after step %d; checkpoint saved. Run the same command again to resume", run.progress.step)
    run.engine.close()
