"""The start of a run, put on record: its settings, environment and assets in its folder, and its first log lines."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from train.checkpoint.checkpoint import Progress
from train.config.run import RunConfig
from train.data import summary
from train.data.budget import Budget
from train.engine.engine import Engine
from train.observe import attention, run_facts
from train.observe.run_log import RunLog
from train.ranks.distributed import World
from train.ranks.stopping import forget_stopped
from train.tasks.task import Task

logger = logging.getLogger(__name__)


def describe_run(config: RunConfig, folder: Path, engine: Engine, task: Task, world: World) -> None:
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


def announce(config: RunConfig, log: RunLog, task: Task, engine: Engine, world: World, progress: Progress) -> None:
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
