"""`python -m train CONFIG [key=value ...] [--check | --describe | --prepare]`: one rank of a training run.

`python -m train --settings [PATTERN]` explains the settings.

Alone, or under torchrun, srun and accelerate launch. Exit codes: 0 done, 2 what was given is wrong, 75 stopped early on
a signal with a checkpoint saved, 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from train.config.errors import ConfigError
from train.config.facts.exit_codes import REFUSED, STOPPED_EARLY
from train.config.facts.run_layout import is_finished
from train.config.load import load
from train.config.reference import as_text
from train.config.resume import refuse_another_run
from train.config.run import RunConfig
from train.ranks import launcher_env
from train.ranks.stopping import NOTHING_LOST, StoppedInPreparationError, StopSignal

if TYPE_CHECKING:
    from torch import nn

    from train.tasks.task import Task

# Whatever imports torch is imported inside functions. It takes seconds: a mistyped key is refused first, and a signal
# that arrives meanwhile is not missed.

logger = logging.getLogger("train")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = _parse(arguments)
    try:
        if given.settings:
            print(as_text(given.config))
            return 0
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
        return REFUSED
    except KeyboardInterrupt:
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        usage="python -m train CONFIG [key=value ...] [--check | --describe | --prepare]\n"
        "       python -m train --settings [PATTERN]",
        description="Train a model; resumes by itself when its run folder has a checkpoint.",
    )
    parser.add_argument("config", nargs="?", help="a YAML file, like configs/language_model/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, like optim.lr=3e-4")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="are config, data and shapes right?")
    modes.add_argument("--describe", action="store_true", help="parameters and shapes, without memory for them")
    modes.add_argument("--prepare", action="store_true", help="make the data ready (tokenise and pack); needs no GPU")
    modes.add_argument("--settings", action="store_true", help="explain all settings, or those that match a PATTERN")
    given = parser.parse_intermixed_args(arguments)
    if given.config is None and not given.settings:
        parser.error("a configuration is missing, like configs/language_model/quickstart.yaml")
    if given.settings and given.overrides:
        parser.error("--settings takes one PATTERN")
    return given


def check(config: RunConfig) -> int:
    """Say whether a run could start: config, data, shapes."""
    task = _task(config)
    task.check()
    _outline(task)
    print(f"{config.name}: the configuration and the data are right")
    return 0


def describe(config: RunConfig) -> int:
    """Print parameters and shapes, built on the meta device."""
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
    getattr(model, "tie_weights", lambda: None)()  # each parameter was made anew, a tied head too
    return model


def prepare(config: RunConfig) -> int:
    """Make the data ready."""
    print(_task(config).prepare())
    return 0


def train(config: RunConfig) -> int:
    """Train this rank to the end, listening to signals from before torch is imported; returns the exit code."""
    is_main = os.environ.get("RANK", "0") == "0"
    launcher_env.refuse_other_engines(config, os.environ)
    refuse_another_run(config.folder, config)
    if is_finished(config.folder, config.steps):
        if is_main:
            print(f"{config.folder} is finished: step {config.steps} of {config.steps} is saved")
        return 0
    stop = StopSignal(deadline=config.checkpoint.stop_deadline, folder=config.folder if is_main else None)
    with stop.listening():
        try:
            with stop.preparing():
                from train import rank
            return rank.run_process(config, stop)
        except StoppedInPreparationError:
            if is_main:
                logger.warning("%s", NOTHING_LOST)
            return STOPPED_EARLY


if __name__ == "__main__":
    code = main()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # what was asked for is done: leaving takes torch a second
    sys.exit(code)
