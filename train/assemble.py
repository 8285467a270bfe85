"""Assembly of a run on one rank: data, process group, engine, resume state, log."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from train.checkpoint import starting_point
from train.checkpoint.checkpoint import CheckpointReader, Progress, Saver, restore
from train.checkpoint.published import damage_seen_by_all, newest_intact
from train.checkpoint.weights_folder import load_folder
from train.config.batch import micro_batches
from train.config.errors import ConfigError
from train.config.facts.folders import named_checkpoint
from train.config.facts.run_layout import CHECKPOINTS, CONFIG, complete_steps, step_name
from train.config.load import to_dict
from train.config.resume import moved_data
from train.config.run import RunConfig
from train.config.tasks.kinds import LARGEST_LR_FACTORS
from train.data import summary
from train.data.budget import Budget
from train.engine.engine import BatchPlan, Engine, resolve_precision, wrap
from train.engine.initialization import drawn_in_parallel
from train.evaluate.layers import layer_faults
from train.loop import Run
from train.observe import attention, run_facts
from train.observe.probes import Probes
from train.observe.run_log import RunLog
from train.observe.spikes import SpikeWatch
from train.ranks import distributed
from train.ranks.distributed import World
from train.ranks.launcher_env import cores_of_rank
from train.ranks.stopping import StopSignal, forget_stopped
from train.ranks.watchdog.watchdog import Watchdog, process_group_timeout, record_flights
from train.tasks import build_task
from train.tasks.task import Task

logger = logging.getLogger(__name__)


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
        _describe_run(config, folder, engine, task, world)
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
    _announce(config, log, task, engine, world, progress)
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


def _describe_run(config: RunConfig, folder: Path, engine: Engine, task: Task, world: World) -> None:
    """Record the run in its folder: configuration, environment, DeepSpeed configuration, assets."""
    run_facts.write_config(config)
    forget_stopped(folder)
    run_facts.write_environment(
        folder,
        world=world,
        precision=engine.precision,
        attention=_attention(task, engine, world),
        facts=task.data_facts,
        budget=_budget(config, task, engine),
    )
    run_facts.write_deepspeed_config(folder, engine.config)
    assets = folder / "assets"
    assets.mkdir(exist_ok=True)
    task.save_assets(assets)


def _attention(task: Task, engine: Engine, world: World) -> attention.Choice | None:
    """Return which kernel attention runs on, None if torch chooses none; on a GPU log it, and warn of a slow one."""
    shape = task.attention()
    if shape is None:
        return None
    dtype = torch.bfloat16 if engine.precision == "bf16" else torch.float32
    found = attention.choice(shape, world.device, dtype)
    if world.device.type == "cuda":
        logger.info("attention: the %s kernel, head width %d", found.kernel, shape.width)
        slow = attention.warning(found, attention.Machine.here(world.device, dtype))
        if slow is not None:
            logger.warning("%s", slow)
    return found


def _announce(config: RunConfig, log: RunLog, task: Task, engine: Engine, world: World, progress: Progress) -> None:
    """Log what is trained, on which data, for how long; and the event of the start."""
    budget = _budget(config, task, engine)
    where = f"{_count(world.size, 'rank')} on {world.device.type}"
    what = f"{config.name}: {config.task.kind.replace('_', ' ')} with {budget.parameters:,} parameters"
    logger.info("%s, trained by %s in %s at ZeRO stage %d", what, where, engine.precision, config.engine.zero_stage)
    plan = engine.plan
    parts = ((world.size, "rank"), (plan.accumulation_steps, "micro-batch"), (plan.micro_batch_size, "sample"))
    division = " x ".join(_count(number, word) for number, word in parts)
    for line in (*summary.lines(task.data_facts), *budget.lines(division)):
        logger.info("%s", line)
    warning = budget.warning()
    if warning is not None and world.is_main:
        logger.warning("%s", warning)
    counts = {"training_samples": task.num_training_samples, "validation_samples": task.num_validation_samples}
    if progress.step:
        logger.info("resuming after step %d", progress.step)
        log.event("resume", step=progress.step, world_size=world.size, zero_stage=config.engine.zero_stage)
    else:
        log.event("start", step=0, world_size=world.size, zero_stage=config.engine.zero_stage, **counts)


def _budget(config: RunConfig, task: Task, engine: Engine) -> Budget:
    return Budget(
        steps=config.steps,
        samples_per_step=config.global_batch_size,
        training_samples=task.num_training_samples,
        parameters=sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters()),
        tokens_per_sample=task.cost(engine.module).tokens,
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{('es' if word.endswith('ch') else 's') * (number != 1)}"
