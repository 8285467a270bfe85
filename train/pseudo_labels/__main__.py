"""Pseudo labels from boxes: `python -m train.pseudo_labels RUN [key=value ...] [--step N] [--workers N]`.

A run of the task box_classification labels every pixel of its training images, or of `sources`, into
RUN/labels/step_NNNNNN/{crf,retrieved}/NAME.png, with how they were made and how good they are in labels.json
(train/data/annotated/label_folder.py). Stopped at any point, the same command goes on where it was. Exit codes: 0 done,
2 what was given is wrong, 75 stopped early by a signal, 1 anything else.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from train.config.commands.pseudo_labels import PseudoLabelConfig
from train.config.errors import ConfigError
from train.config.facts.exit_codes import STOPPED_EARLY
from train.config.load import load_settings, read_run
from train.config.run import RunConfig
from train.config.tasks.box_segmentation import BoxClassificationConfig

_MOST_WORKERS = 1024


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = _parse(arguments)
    try:
        settings, run = load_settings(PseudoLabelConfig, options.overrides), read_run(options.run)
        _refuse_another_task(run, options.run)
        return _make(run, options.run, settings, step=options.step, workers=options.workers)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        prog="python -m train.pseudo_labels", description="Label the images of a run from their boxes."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of the task box_classification")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="how, for example attention_threshold=0.9 or crf.xy=30; docs/settings.md lists all",
    )
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest intact one)")
    parser.add_argument("--workers", type=int, help=f"processes (default: {cores}, one per core; one on a GPU)")
    options = parser.parse_intermixed_args(arguments)
    if options.workers is not None and not 1 <= options.workers <= _MOST_WORKERS:
        parser.error(f"--workers {options.workers}: write 1 to {_MOST_WORKERS}")
    return options


def _refuse_another_task(run: RunConfig, folder: Path) -> None:
    if not isinstance(run.task, BoxClassificationConfig):
        raise ConfigError([f"{folder}: a run of {run.task.kind}; labels are made by a run of box_classification"])


def _make(run: RunConfig, folder: Path, settings: PseudoLabelConfig, *, step: int | None, workers: int | None) -> int:
    # These imports take seconds: --help and wrong arguments are handled before them.
    from train.pseudo_labels.making import StoppedError, WorkerDiedError, make_labels
    from train.pseudo_labels.summary import lines

    try:
        labels, facts = make_labels(run, folder, settings, step=step, workers=workers)
    except StoppedError as stopped:
        print(f"stopped: {stopped}; run the same command again to go on", file=sys.stderr)
        return STOPPED_EARLY
    except (OSError, WorkerDiedError) as error:
        print(f"{error}; labels made so far are kept: run the same command again to go on", file=sys.stderr)
        return 1
    print("\n".join(lines(labels, facts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
