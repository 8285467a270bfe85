"""`python -m train CONFIG [key=value ...] [--check | --describe | --prepare]`: one rank of a training run.

`python -m train --settings [PATTERN]` documents the settings.

Runs standalone or under torchrun, srun or accelerate launch. Exit codes: 0 done, 2 invalid configuration or arguments,
75 stopped early by a signal with a checkpoint saved, 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from train.checkpoint import starting_point
from train.config.errors import ConfigError
from train.config.facts.exit_codes import REFUSED, STOPPED_EARLY
from train.config.facts.folders import obstacle
from train.config.facts.run_layout import is_finished
from train.config.load import load
from train.config.reference import as_text
from train.config.resume import moved_data, refuse_another_run
from train.config.run import RunConfig
from train.data.damage import DamagedDataError
from train.ranks import launcher_env
from train.ranks.stopping import NOTHING_LOST, StoppedInPreparationError, StopSignal
from train.ranks.watchdog.run_lock import RunLock

if TYPE_CHECKING:
    from torch import nn

    from train.tasks.task import Task

# Modules that import torch are imported inside functions. The import takes seconds: this way a mistyped key is reported
# before it, and a signal that arrives during it is not missed.

logger = logging.getLogger("train")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = _parse(arguments)
    try:
        if options.settings:
            print(as_text(options.config))
            return 0
        launcher_env.adopt_srun(os.environ)
        launcher_env.wait_passively_beside_other_ranks(os.environ)
        config = load(options.config, options.overrides)
        if options.describe:
            return describe(config)
        if options.check:
            return check(config)
        if options.prepare:
            return prepare(config)
        return train(config)
    except ConfigError as error:
        launcher_env.report_to_torchrun(str(error))  # rank 0 may be terminated before it can print
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        return REFUSED
    except (DamagedDataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        usage="python -m train CONFIG [key=value ...] [--check | --describe | --prepare]\n"
        "       python -m train --settings [PATTERN]",
        description="Train a model. Resumes automatically if the run folder contains a checkpoint.",
    )
    parser.add_argument("config", nargs="?", help="YAML file, for example configs/language_model/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to override, for example optim.lr=3e-4"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="validate configuration, data and shapes, then exit")
    modes.add_argument("--describe", action="store_true", help="list parameters and shapes without allocating them")
    modes.add_argument("--prepare", action="store_true", help="prepare the data (tokenize and pack); needs no GPU")
    modes.add_argument("--settings", action="store_true", help="document all settings, or those that match PATTERN")
    options = parser.parse_intermixed_args(arguments)
    if options.config is None and not options.settings:
        parser.error("missing CONFIG, for example configs/language_model/quickstart.yaml")
    if options.settings and options.overrides:
        parser.error("--settings accepts a single PATTERN")
    return options


def check(config: RunConfig) -> int:
    """Validate configuration, folders, starting point, data and shapes without starting the run.

    Raises:
        ConfigError: With every fault; nothing has been written.
    """
    refuse_another_run(config.folder, config)
    starting_faults = starting_point.faults(config)
    faults = [*_folder_faults(config), *starting_faults]
    task = _task(config)
    lines: list[str] = []
    try:
        lines = task.check()
    except ConfigError as error:
        faults += error.faults
    except OSError as error:  # a path that no file system takes, or one that may not be read
        faults.append(f"task.data: {error}")
    start = starting_point.weights_folder(config)
    usable_start = start if start is not None and start.is_dir() and not starting_faults else None
    faults += _outline_faults(config, task, usable_start)
    if faults:
        raise ConfigError(faults)
    print("\n".join([*lines, f"{config.name}: configuration and data are valid"]))
    return 0


def _folder_faults(config: RunConfig) -> Iterator[str]:
    """Yield the folders that the run could not write to."""
    folders = {"output_dir": config.folder, "task.data.cache_dir": getattr(config.task.data, "cache_dir", None)}
    for key, folder in folders.items():
        reason = None if folder is None else obstacle(Path(folder))
        if reason is not None:
            yield f"{key}: {folder} cannot be written to: {reason}; choose another folder"


def _outline_faults(config: RunConfig, task: Task, folder: Path | None) -> list[str]:
    """Build the model on the meta device; return why it cannot be built, or why layers or weights do not fit it."""
    from train.evaluate.layers import layer_faults

    try:
        model = _outline(task)
    except ConfigError as error:
        return error.faults
    faults = layer_faults(config.probes.layers_every, task, model)
    return faults if folder is None else [*faults, *starting_point.weight_faults(folder, model)]


def describe(config: RunConfig) -> int:
    """Print parameters and shapes of the model, built on the meta device."""
    task = _task(config)
    model = _outline(task)
    for name, parameter in model.named_parameters():
        print(f"{name:60} {'x'.join(map(str, parameter.shape)):>16} {parameter.numel():>14,}")
    print(f"\n{'parameters':30}{sum(parameter.numel() for parameter in model.parameters()):>16,}")
    for name, count in task.describe(model).items():
        number, _, note = count.partition("  ")
        print(f"{name:30}{number:>16}{f'  {note}' if note else ''}")
    return 0


def _task(config: RunConfig) -> Task:
    from train.tasks import build_task

    return build_task(config)


def _outline(task: Task) -> nn.Module:
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = task.outline()
    getattr(model, "tie_weights", lambda: None)()  # every parameter was created separately, including a tied head
    return model


def prepare(config: RunConfig) -> int:
    """Prepare the data; return the exit code."""
    task = _task(config)
    try:
        with _told("train.data"):
            print(task.prepare())
    except OSError as error:
        print(f"the data could not be prepared: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _told(package: str) -> Iterator[None]:
    """Show what a package logs on standard error."""
    log, handler = logging.getLogger(package), logging.StreamHandler(sys.stderr)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def train(config: RunConfig) -> int:
    """Train this rank, handling signals from before torch is imported; return the exit code."""
    is_main = os.environ.get("RANK", "0") == "0"
    if not is_main:  # until each rank's log is set up
        logging.getLogger("train").setLevel(logging.ERROR)
    launcher_env.refuse_other_engines(config, os.environ)
    refuse_another_run(config.folder, config)
    if _is_finished(config):
        return 0
    starting_point.refuse(config)
    launcher = launcher_env.end_with_launcher(os.environ)
    stop = StopSignal(deadline=config.checkpoint.stop_deadline, launcher=launcher)
    with stop.listening():
        try:
            return _train_locked(config, stop, is_main=is_main)
        except StoppedInPreparationError:
            if is_main:
                logger.warning("%s", NOTHING_LOST)
            return STOPPED_EARLY


def _train_locked(config: RunConfig, stop: StopSignal, *, is_main: bool) -> int:
    """Train this rank while rank 0 holds the lock of the run folder; return the exit code."""
    with RunLock(config.folder) as lock:
        with stop.preparing():
            _take(lock, config)
            if is_main:
                stop.record_in(config.folder)
            refuse_another_run(config.folder, config)  # again: another start may have come first
            if _is_finished(config):
                return 0
            from train import rank
        return rank.run_process(config, stop)


def _take(lock: RunLock, config: RunConfig) -> None:
    try:
        lock.take()
    except (PermissionError, NotADirectoryError, FileExistsError, FileNotFoundError) as error:
        raise ConfigError([f"output_dir: {config.folder} cannot be written ({error.strerror})"]) from None


def _is_finished(config: RunConfig) -> bool:
    """Return whether nothing is left to do, and say so."""
    if not is_finished(config.folder, config.steps, keeps_weights=config.checkpoint.weights_every is not None):
        return False
    if os.environ.get("RANK", "0") == "0":
        print(f"{config.folder} is already finished: step {config.steps} of {config.steps} is saved")
        for change in moved_data(config.folder, config):
            print(f"  not compared: {change}")
    return True


if __name__ == "__main__":
    code = main()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the work is done, but torch needs a second to shut down
    sys.exit(code)
