"""The data of a run, shown: `python -m train.data CONFIG [key=value ...] [--step N]`.

With `--step N`, also what step N of the run trains on: its samples in their order and, of text, the first windows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from train.config.errors import ConfigError
from train.config.load import load
from train.config.run import RunConfig
from train.config.tasks.box_segmentation import BoxClassificationConfig, SemanticSegmentationConfig
from train.config.tasks.joint_filter import JointFilterConfig
from train.config.tasks.language_model import LanguageModelConfig
from train.config.tasks.score_upsampling import ScoreUpsamplingConfig
from train.data.damage import DamagedDataError


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = _parse(arguments)
    try:
        config = load(options.config, options.overrides)
        if options.step is not None and not 1 <= options.step <= config.steps:
            raise ConfigError([f"--step {options.step}: {config.name} has steps 1 to {config.steps}"])
        shown = list(lines(config, options.step))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (DamagedDataError, OSError) as error:
        print(f"the data cannot be read: {error}", file=sys.stderr)
        return 1
    print("\n".join(shown))
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m train.data",
        description="Show what is in the data of a run, after preparing it as training would.",
    )
    parser.add_argument("config", help="YAML file, for example configs/language_model/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to override")
    parser.add_argument("--step", type=int, help="also show the samples of this step, as it trains on them")
    return parser.parse_intermixed_args(arguments)


def lines(config: RunConfig, step: int | None) -> Iterator[str]:
    """Yield what is in the data of a run and, given a step, in its samples.

    Raises:
        ConfigError: The data are not suitable for the run, or of a task that has no view.
    """
    # These imports take seconds: --help and command-line errors are handled before them.
    match config.task:
        case LanguageModelConfig():
            from train.data.text.view import TextView

            view = TextView(config.task)
        case JointFilterConfig():
            from train.data.images.view import PairView

            view = PairView(config.task.data)
        case BoxClassificationConfig() | SemanticSegmentationConfig() | ScoreUpsamplingConfig():
            from train.data.annotated.view import AnnotatedView

            view = AnnotatedView(config.task.data)
        case _:
            raise ConfigError([f"task.kind: the data of {config.task.kind} have no view (train/data/__main__.py)"])
    yield from view.overview()
    if step is not None:
        from train.data.order import SampleOrder

        size, seed = config.global_batch_size, config.task.data.seed
        order = SampleOrder(view.num_training_samples, seed=seed, global_batch_size=size)
        first, last = ((size * n) / view.num_training_samples for n in (step - 1, step))
        yield ""
        yield f"step {step} of {config.steps}: {size:,} samples, from epoch {first:.3f} to {last:.3f}"
        yield from view.samples(order.of_step(step))


if __name__ == "__main__":
    sys.exit(main())
