"""`python -m train CONFIG [key=value ...] [--check | --describe | --prepare]`: one rank of a training run.

Alone, or under torchrun, srun and accelerate launch. Exit codes: 0 done, 2 what was given is wrong, 75 stopped early on
a signal with a checkpoint saved, 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from train.config.run import ConfigError, RunConfig, check_world_size, load, micro_batches
from train.ranks import launcher_env

if TYPE_CHECKING:  # the real imports take seconds; a mistyped key is answered before them
    from train.checkpoint.checkpoint import Progress
    from train.engine.engine import Engine
    from train.loop import Run
    from train.ranks.distributed import World
    from train.ranks.stopping import StopSignal
    from train.tasks.task import Task
    from train.watchdog.watchdog import Watchdog

logger = logging.getLogger("train")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = _parse(arguments)
    try:
        launcher_env.adopt_srun(os.environ)
        launcher_env.wait_passively_beside_other_ranks(os.environ)
        config = load(given.config, given.overrides)
        if given.describe:
            return describe(config)
        if given.check:
            return check(config)
        if given.prepare:
            return prepare(config)
        return train(config)
    except ConfigError as error:
        launcher_env.tell_torchrun(str(error))  # rank 0 may be ended before it comes so far
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m train", description="Train a model; resumes by itself when its run folder has a checkpoint."
    )
    parser.add_argument("config", help="a YAML file, like configs/language_model/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, like optim.lr=3e-4")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="are config, data and shapes right?")
    modes.add_argument("--describe", action="store_true", help="parameters and shapes, without memory for them")
    modes.add_argument("--prepare", action="store_true", help="make the data ready (tokenise and pack); needs no GPU")
    return parser.parse_intermixed_args(arguments)


def check(config: RunConfig) -> int:
    """Say whether a run could start: config, data, shapes."""
    from train.tasks import build_task

    task = build_task(config)
    task.check()
    _outline(task)
    print(f"{config.name}: the configuration and the data are right")
    return 0


def describe(config: RunConfig) -> int:
    """Print parameters and shapes, built on the meta device."""
    from train.tasks import build_task

    task = build_task(config)
    model = _outline(task)
    for name, parameter in model.named_parameters():
        print(f"{name:60} {'x'.join(map(str, parameter.shape)):>16} {parameter.numel():>14,}")
    print(f"\n{'parameters':30}{sum(parameter.numel() for parameter in model.parameters()):>16,}")
    for name, count in task.describe(model).items():
        number, _, note = count.partition("  ")
        print(f"{name:30}{number:>16}{f'  {note}' if note else ''}")
    return 0


def _outline(task: Task):
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = task.outline()
    getattr(model, "tie_weights", lambda: None)()  # each parameter was made anew, a tied head too
    return model


def prepare(config: RunConfig) -> int:
    """Make the data ready."""
    from train.tasks import build_task

    print(build_task(config).prepare())
    return 0


def train(config: RunConfig) -> int:
    """Train this rank to the end."""
    from train import run_folder

    launcher_env.refuse_other_engines(config, os.environ)
    run_folder.refuse_another_config(config)
    if run_folder.is_finished(config):
        if os.environ.get("RANK", "0") == "0":
            print(f"{run_folder.run_folder(config)} is finished: step {config.steps} of {config.steps} is saved")
        return 0

    from train.ranks.stopping import NOTHING_LOST, STOPPED_EARLY, StoppedInPreparationError, StopSignal

    is_main = os.environ.get("RANK", "0") == "0"
    folder = run_folder.run_folder(config) if is_main else None
    stop = StopSignal(deadline=config.checkpoint.stop_deadline, folder=folder)
    with stop.listening():  # from here on: importing torch alone takes seconds
        try:
            return _train(config, stop)
        except StoppedInPreparationError:
            if is_main:
                logger.warning("%s", NOTHING_LOST)
            return STOPPED_EARLY


def _train(config: RunConfig, stop: StopSignal) -> int:
    with stop.preparing():
        from train.checkpoint.checkpoint import CheckpointError
        from train.loop import TooManySkippedStepsError
        from train.ranks import distributed

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
    """Assemble the run on this rank and fit it; leaves the process group as it is.

    Args:
        config: The run.
        stop: Hears the signals to this process; None: nobody does.

    Returns:
        The exit code: 0, or 75 where the run stopped early with a checkpoint saved.

    Raises:
        StoppedInPreparationError: A signal came before the first step.
    """
    from train.ranks.distributed import world_size_from_environment
    from train.ranks.stopping import StopSignal
    from train.run_folder import run_folder
    from train.watchdog.watchdog import Watchdog

    size = world_size_from_environment()
    rank = int(os.environ["RANK"]) if size > 1 else 0
    with Watchdog(config.watchdog, run_folder(config), rank=rank, size=size) as watchdog:
        return _train_rank(config, stop or StopSignal(), watchdog)


def _train_rank(config: RunConfig, stop: StopSignal, watchdog: Watchdog) -> int:
    from train.loop import fit
    from train.ranks import distributed
    from train.ranks.stopping import STOPPED_EARLY, note_stopped

    with stop.preparing():
        run = assemble(config, stop, watchdog)
    try:
        finished = fit(run)
        stop.is_saved()
        if finished:
            run.log.event("finish", step=run.progress.step)
    finally:
        run.saver.close()
        run.log.close()
    if finished:
        logger.info("done: %s (tensorboard --logdir %s)", run.folder, config.output_dir)
    else:
        if run.world.is_main:
            note_stopped(run.folder, step=run.progress.step, name=stop.name or "signal to another rank")
        distributed.all_agree(True)  # none leaves before that is noted: launchers end all ranks with the first
        logger.info("stopped after step %d, which is saved; start the same command again", run.progress.step)
    run.engine.close()
    return 0 if finished else STOPPED_EARLY


def assemble(config: RunConfig, stop: StopSignal, watchdog: Watchdog) -> Run:
    """Bring together everything that this rank trains with, at the step where it is to go on."""
    import torch

    from train.checkpoint.checkpoint import Saver
    from train.engine.engine import BatchPlan, resolve_precision, wrap
    from train.loop import Run
    from train.observe.probes import Probes
    from train.observe.spikes import SpikeWatch
    from train.ranks import distributed
    from train.run_folder import run_folder
    from train.tasks import build_task
    from train.watchdog.watchdog import process_group_timeout, record_flights

    task = build_task(config)
    task.open_data()  # before the process group: its deadline does not run while one rank tokenises
    watchdog.announce()
    folder = run_folder(config)
    record_flights(folder)
    world = distributed.start(threads=config.engine.threads, timeout=process_group_timeout(config.watchdog))
    if config.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    engine_config = replace(config.engine, precision=resolve_precision(config.engine, task, world.device))
    model = task.build_model()
    _load_starting_weights(config, model)
    engine = wrap(
        model,
        task.parameter_groups(model),
        engine=engine_config,
        optim=config.optim,
        world=world,
        plan=BatchPlan(*micro_batches(config, world.size)),
    )
    torch.manual_seed(config.seed + 1 + world.rank)  # whatever is drawn while training differs between ranks
    progress, notes = _resume(config, folder, engine, task, world)
    log = _open_run_folder(config, folder, engine, task, world, progress)
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
            folder / "checkpoints",
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


def _load_starting_weights(config: RunConfig, model) -> None:
    from train.checkpoint.checkpoint import load_folder

    start = config.checkpoint.start_from
    if start is not None and "@" not in start:
        load_folder(model, Path(start))


def _resume(config: RunConfig, folder: Path, engine: Engine, task: Task, world: World) -> tuple[Progress, list[str]]:
    """Go on from this run's newest intact checkpoint; else from another run's, where asked; else from the start."""
    from train.checkpoint import checkpoint
    from train.checkpoint.checkpoint import Progress

    found, passed_over = checkpoint.newest_intact(folder / "checkpoints", world=world)
    for note in passed_over if world.is_main else []:
        logger.warning("%s", note)
    start = config.checkpoint.start_from
    if found is not None:
        _require_same_data(found, task)
    elif start is not None and "@" in start:
        found = _checkpoint_of_another_run(config, start, world)
    if found is None:
        return Progress(), passed_over
    return checkpoint.restore(found, engine, world=world), passed_over


def _require_same_data(found: Path, task: Task) -> None:
    from train.checkpoint.checkpoint import CheckpointReader

    saved = CheckpointReader(found).manifest["data_fingerprint"]
    if saved != task.data_fingerprint:
        raise ConfigError(
            [
                f"task.data: the data has changed since {found} was saved (fingerprint {saved}, now "
                f"{task.data_fingerprint}); restore the data, or start a new run (name=...)"
            ]
        )


def _checkpoint_of_another_run(config: RunConfig, start: str, world: World) -> Path:
    from train.checkpoint.checkpoint import complete_steps, damage, step_folder

    run, _, step = start.rpartition("@")
    folder = Path(run) if (Path(run) / "checkpoints").is_dir() else Path(config.output_dir) / run
    steps = complete_steps(folder / "checkpoints")
    if int(step) not in steps:
        known = f"it has steps {', '.join(map(str, steps))}" if steps else "it has none"
        raise ConfigError([f"checkpoint.start_from: {folder} has no checkpoint of step {step}; {known}"])
    if int(step) >= config.steps:
        raise ConfigError(
            [f"checkpoint.start_from: step {step} is not before the last step; raise steps ({config.steps})"]
        )
    found = folder / "checkpoints" / step_folder(int(step))
    faults = damage(found, world=world)
    if faults:
        raise ConfigError([f"checkpoint.start_from: {found} is damaged: {'; '.join(faults)}"])
    return found


def _open_run_folder(config: RunConfig, folder: Path, engine: Engine, task: Task, world: World, progress: Progress):
    from train import run_folder
    from train.config.run import to_dict
    from train.observe.run_log import RunLog
    from train.ranks.stopping import forget_stopped

    if world.is_main:
        run_folder.write_config(config)
        forget_stopped(folder)
        run_folder.write_environment(folder, world=world, precision=engine.precision, facts=task.data_facts)
        run_folder.write_deepspeed_config(folder, engine.config)
        assets = folder / "assets"
        assets.mkdir(exist_ok=True)
        task.save_assets(assets)
    return RunLog(folder, world=world, steps=config.steps, done=progress.step, hyperparameters=to_dict(config))


def _announce(config: RunConfig, log, task: Task, engine: Engine, world: World, progress: Progress) -> None:
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    plan = engine.plan
    where = f"{world.size} rank{'s' * (world.size > 1)} on {world.device.type}"
    batch = f"{world.size} x {plan.accumulation_steps} x {plan.micro_batch_size} samples a step"
    logger.info(
        "%s: %s parameters, %s, ZeRO %d, %s", config.name, f"{parameters:,}", where, config.engine.zero_stage, batch
    )
    counts = {"training_samples": task.num_training_samples, "validation_samples": task.num_validation_samples}
    if progress.step:
        logger.info("resuming after step %d", progress.step)
        log.event("resume", step=progress.step, world_size=world.size, zero_stage=config.engine.zero_stage)
    else:
        log.event("start", step=0, world_size=world.size, zero_stage=config.engine.zero_stage, **counts)


if __name__ == "__main__":
    code = main()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # what was asked for is done: leaving takes torch a second
    sys.exit(code)
