"""`make offline-kit [CORPUS=FILE] [TOKENIZER=FOLDER]`: what a machine with a GPU and without a network lacks.

Fills .offline/ with wheels, a packed corpus and a tokenizer, checks that nothing is missing, and prints the command to
run there. Exit codes: 0 done, 2 the arguments are wrong, 1 the kit cannot be made.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tomllib
from pathlib import Path

from packaging.utils import canonicalize_name

from tests.gpu.kit import data, wheels
from tests.gpu.kit.closure import missing, read_machine
from train.config.errors import ConfigError
from train.config.tasks.language_model import SourceConfig

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".offline"
HERE = Path(__file__).parent
LARGEST_MB = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Make the kit and return the exit code."""
    parser = argparse.ArgumentParser(prog="make offline-kit", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--corpus", metavar="FILE", help="text to train on; default: Python's standard library")
    parser.add_argument("--separator", metavar="LINE", help="the line between documents of a text file")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="its tokenizer; default: a byte-level BPE trained on it")
    options = parser.parse_args(arguments)
    absent = [f"{name}: {path} does not exist" for name, path in _given(options) if not Path(path).exists()]
    if options.separator and not options.corpus:
        absent.append("SEPARATOR: belongs to CORPUS, which is not given")
    if absent:
        print("\n".join(absent), file=sys.stderr)
        return 2
    try:
        make(FOLDER, corpus=options.corpus, separator=options.separator, tokenizer=options.tokenizer)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except wheels.KitError as error:
        print(f"the kit cannot be made: {error}", file=sys.stderr)
        return 1
    print(f"{FOLDER.name}/ is complete: {size_mb(FOLDER):.1f} MB. On the machine, in the root of the checkout:\n")
    print(f'    bash {FOLDER.name}/there.sh 480 "$OUT"')
    return 0


def _given(options: argparse.Namespace) -> list[tuple[str, str]]:
    paths = (("CORPUS", options.corpus), ("TOKENIZER", options.tokenizer))
    return [(name, path) for name, path in paths if path]


def make(folder: Path, *, corpus: str | None, separator: str | None, tokenizer: str | None) -> None:
    """Fill a folder with the kit.

    Raises:
        ConfigError: The text or the tokenizer cannot be used.
        KitError: A wheel cannot be had, something is missing, or the kit is too large.
    """
    source = SourceConfig(path=corpus, document_separator=separator) if corpus else None
    data.pack(folder / "data", source=source, tokenizer=Path(tokenizer) if tokenizer else None)
    machine = read_machine(HERE / "installed.txt")
    brought = wheels.gather(requirements(), folder / "wheels", machine=machine, versions=versions())
    shutil.copy(HERE / "there.sh", folder)
    unmet = missing(requirements(), brought, machine)
    if unmet:
        raise wheels.KitError(f"not in the kit: {', '.join(map(str, unmet))}")
    require_small(folder)


def requirements() -> list[str]:
    """Return the runtime requirements of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"]


def versions() -> dict[str, str]:
    """Return the pinned version of each package, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def require_small(folder: Path, *, largest_mb: float = LARGEST_MB) -> None:
    """Refuse a kit that is too large to bring.

    Raises:
        KitError: With the largest files.
    """
    size = size_mb(folder)
    if size <= largest_mb:
        return
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    largest = ", ".join(f"{path.relative_to(folder)} {path.stat().st_size / 1e6:.1f}" for path in files[:3])
    raise wheels.KitError(f"{size:.1f} MB is more than the {largest_mb:g} MB that can be brought ({largest} MB)")


def size_mb(folder: Path) -> float:
    """Return the size of all files of a folder, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
