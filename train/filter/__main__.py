"""A joint image filter over files: `python -m train.filter MODEL GUIDANCE TARGET OUT`.

    python -m train.filter exported/fdkn-x8 color.png depth.png sharp.png
    python -m train.filter exported/fdkn-x8 colors/ depths/ sharp/

Files of two folders belong together if their names are equal up to the suffix. Outputs have the guidance's size and the
target's type. Exit codes: 0 done, 2 what was given is wrong, 1 anything else.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.config.errors import ConfigError
from train.config.facts.run_layout import CONFIG, read_json
from train.filter.pairs import Job, find_jobs, read, write

if TYPE_CHECKING:
    from modeling.joint_filter.modeling_dkn import DKNModel


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = _parse(arguments)
    settings = {"iterations": options.iterations, "scale": options.scale}
    try:
        _require_filter(options.model)
        jobs = find_jobs(options.guidance, options.target, options.out, existing=options.existing)
        _filter_all(options.model, jobs, {name: value for name, value in settings.items() if value is not None})
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error}; outputs that exist are complete", file=sys.stderr)
        return 1
    print(f"{len(jobs)} filtered: {options.out}")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m train.filter", description="Filter images by a joint image filter, guided by other images."
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="exported folder of a filter")
    parser.add_argument("guidance", type=Path, metavar="GUIDANCE", help="image or array, or a folder of them")
    parser.add_argument("target", type=Path, metavar="TARGET", help="what is filtered, likewise; may be smaller")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, or a folder if the others are folders")
    parser.add_argument("--existing", choices=("skip", "replace"), help="what to do with outputs that exist")
    parser.add_argument("--iterations", type=int, help="how often the filter is applied to its own output (default: 1)")
    parser.add_argument("--scale", type=float, help="how many times coarser targets are (default: their sizes tell)")
    return parser.parse_args(arguments)


def _require_filter(folder: Path) -> None:
    """Refuse what is no exported filter.

    Raises:
        ConfigError: See above.
    """
    if (folder / CONFIG).is_file():
        raise ConfigError([f"{folder}: is a run; export its filter first: python -m train.export {folder} OUT"])
    described = read_json(folder / "config.json")
    if described is None or described.get("model_type") != "dkn":
        raise ConfigError(
            [f"{folder}: is no exported joint image filter; pass a folder that python -m train.export wrote"]
        )


def _filter_all(folder: Path, jobs: Sequence[Job], settings: Mapping[str, Any]) -> None:
    """Filter every pair, after reading each once to find all faults before the first output.

    Raises:
        ConfigError: Images cannot be read, or do not go together or with the filter.
        OSError: An output cannot be written.
    """
    # These imports take seconds: --help and wrong arguments are handled before them.
    import torch
    from tqdm import tqdm

    from modeling.joint_filter.modeling_dkn import DKNModel
    from train.evaluate.folder_model import load_own

    model = load_own(folder)
    assert isinstance(model, DKNModel)
    torch.nn.Module.to(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if faults := list(filter(None, (_fault(folder, job, settings) for job in jobs))):
        raise ConfigError(faults)
    for job in tqdm(jobs, desc="filtering", unit="image", disable=not sys.stderr.isatty()):
        image = _filtered(model, job, settings)
        write(image, job.out)


def _fault(folder: Path, job: Job, settings: Mapping[str, Any]) -> str | None:
    """Return why the images of a pair cannot be read, or do not go together."""
    from modeling.joint_filter.image_processing_dkn import DKNImageProcessor

    is_saved = (folder / "preprocessor_config.json").is_file()
    processor = DKNImageProcessor.from_pretrained(folder) if is_saved else DKNImageProcessor()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are shown when the pair is filtered
            processor(read(job.guidance), read(job.target), scale=settings.get("scale"))
    except (ValueError, OSError) as error:
        return _of_pair(job, error)
    return None


def _filtered(model: DKNModel, job: Job, settings: Mapping[str, Any]) -> Any:
    """Return the output of a pair; print warnings with the name of its target.

    Raises:
        ConfigError: The images do not go with the filter.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = model.filter(read(job.guidance), read(job.target), **settings)
        except ValueError as error:
            raise ConfigError([_of_pair(job, error)]) from None
    for warning in caught:
        print(f"{job.target}: {warning.message}", file=sys.stderr)
    return image


def _of_pair(job: Job, error: Exception) -> str:
    return f"{job.guidance} and {job.target}: {error}"


if __name__ == "__main__":
    sys.exit(main())
