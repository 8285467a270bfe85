"""One rank of a run: logging, process group, everything it trains with, watchdog, errors and exit code."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from train.checkpoint import starting_point
from train.checkpoint.checkpoint import CheckpointError, CheckpointReader, Progress, Saver, restore
from train.checkpoint.published import damage_seen_by_all, newest_intact
from train.checkpoint.weights_folder import load_folder
from train.config.batch import check_world_size, micro_batches
from train.config.errors import ConfigError
from train.config.facts.exit_codes import STOPPED_EARLY
from train.config.facts.folders import named_checkpoint
from train.config.facts.run_layout import CHECKPOINTS, CONFIG, complete_steps, step_name
from train.config.load import to_dict
from train.config.resume import moved_data
from train.config.run import RunConfig
from train.config.tasks.kinds import LARGEST_LR_FACTORS
from train.data.damage import DamagedDataError
from train.engine.engine import BatchPlan, Engine, resolve_precision, wrap
from train.engine.initialization import drawn_in_parallel
from train.evaluate.layers import layer_faults
from train.loop import Run, TooManySkippedStepsError, fit
from train.observe.announcement import announce, describe_run
from train.observe.probes import Probes
from train.observe.run_log import RunLog
from train.observe.spikes import SpikeWatch
from train.ranks import distributed
from train.ranks.distributed import World
from train.ranks.garbage import no_automatic_collection
from train.ranks.launcher_env import cores_of_rank
from train.ranks.stopping import StopSignal, note_stopped
from train.ranks.watchdog.watchdog import Watchdog, process_group_timeout, record_flights
from train.tasks import build_task
from train.tasks.task import Task

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


# ------------------------------------------------------------------------------------------ what a rank trains with


def assemble(config: RunConfig, stop: StopSignal, watchdog: Watchdog) -> Run:
    """Build everything this rank needs to train, restored to the step to resume from."""
    task = build_task(config)
    task.open_data()  # before the process group, whose timeout must not run while one rank tokenizes
    folder = config.folder
    record_flights(folder)
    world = distributed.start(threads=config.engine.threads, timeout=process_group_timeout(config.watchdog))
    if config.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    engine = _build_engine(config, task, world)
    if faults := layer_faults(config.probes.layers_every, task, engine.module):
        raise ConfigError(faults)
    torch.manual_seed(config.seed + 1 + world.rank)  # random numbers during training differ between ranks
    progress, notes = _resume(config, folder, engine, task, world)
    if world.is_main:
        describe_run(config, folder, engine, task, world)
    log = RunLog(
        folder,
        world=world,
        steps=config.steps,
        done=progress.step,
        hyperparameters=to_dict(config),
        unit_of=task.metric_unit,
    )
    for note in notes:
        log.event("pass_over", step=progress.step, reason=note)
    announce(config, log, task, engine, world, progress)
    return Run(
        config=config,
        folder=folder,
        task=task,
        engine=engine,
        world=world,
        log=log,
        probes=Probes(config, sites=task.probe_sites(engine.module), engine=engine, log=log),
        spikes=SpikeWatch(
            window=config.probes.spike_window, threshold=config.probes.spike_threshold, recent=progress.recent
        ),
        saver=Saver(
            folder / CHECKPOINTS,
            engine,
            world=world,
            data_fingerprint=task.data_fingerprint,
            keep=config.checkpoint.keep,
        ),
        stop=stop,
        channel=distributed.SideChannel(),
        progress=progress,
        watchdog=watchdog,
    )


def _build_engine(config: RunConfig, task: Task, world: World) -> Engine:
    """Build the task's model with its initial weights and wrap it with DeepSpeed."""
    cores = cores_of_rank(os.environ, seen=len(os.sched_getaffinity(0)), local_size=world.local_size)
    with drawn_in_parallel(cores) if world.device.type == "cuda" else nullcontext():
        model = task.build_model()
    start = starting_point.weights_folder(config)
    if start is not None and (start.is_dir() or not complete_steps(config.folder / CHECKPOINTS)):
        load_folder(model, start)
    groups = task.parameter_groups(model)
    largest = LARGEST_LR_FACTORS.get(config.task.kind, 1.0)
    assert all(g.lr_factor <= largest for g in groups), f"declare that of {config.task.kind} in LARGEST_LR_FACTORS"
    return wrap(
        model,
        groups,
        engine=replace(config.engine, precision=resolve_precision(config.engine, task, world.device)),
        optim=config.optim,
        world=world,
        plan=BatchPlan(*micro_batches(config, world.size)),
    )


def _resume(config: RunConfig, folder: Path, engine: Engine, task: Task, world: World) -> tuple[Progress, list[str]]:
    """Resume from this run's newest intact checkpoint, else from `checkpoint.start_from`, else start from scratch."""
    checkpoint, notes = newest_intact(folder / CHECKPOINTS, world=world)
    for note in notes if world.is_main else []:
        logger.warning("%s", note)
    start = config.checkpoint.start_from
    if checkpoint is not None:
        _require_same_data(config, checkpoint, task)
    elif start is not None and (named := named_checkpoint(start)) is not None:
        checkpoint = _checkpoint_of_another_run(config, *named, world)
    if checkpoint is None:
        starting_point.refuse(config)  # a folder may be gone, which own checkpoints had replaced until now
        return Progress(), notes
    return restore(checkpoint, engine, world=world), notes


def _require_same_data(config: RunConfig, checkpoint: Path, task: Task) -> None:
    """Compare the data with those that a checkpoint was trained on, wherever they lie.

    Raises:
        ConfigError: They are others.
    """
    saved, moved = CheckpointReader(checkpoint).manifest["data_fingerprint"], moved_data(config.folder, config)
    if saved != task.data_fingerprint:
        raise ConfigError(
            [
                f"task.data: the data has changed since {checkpoint} was saved (fingerprint was {saved}, is now "
                f"{task.data_fingerprint}); restore the data, or start a new run (name=...)",
                *moved,
            ]
        )
    if moved:
        logger.info("the data lie elsewhere and are the same (fingerprint %s): %s", saved, "; ".join(moved))
    if not (config.folder / CONFIG).exists():
        logger.warning("%s has no %s: its settings could not be compared with these", config.folder, CONFIG)


def _checkpoint_of_another_run(config: RunConfig, run: str, step: int, world: World) -> Path:
    starting_point.refuse(config)
    checkpoint = starting_point.run_folder(config, run) / CHECKPOINTS / step_name(step)
    faults = damage_seen_by_all(checkpoint, world=world)
    if faults:
        raise ConfigError([f"checkpoint.start_from: {checkpoint} is damaged: {'; '.join(faults)}"])
    return checkpoint
