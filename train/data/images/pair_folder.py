"""A folder of pairs: two files each, found by patterns or by the names that are usual."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig
from train.data.images import image_files
from train.data.images.image_files import Layout, UnreadableError
from train.data.images.sources import known_values, part, useless_keys

if TYPE_CHECKING:
    from hashlib import blake2b

_GUIDANCE_WORDS = {"color", "colour", "guidance", "guide", "im", "image", "images", "img", "left", "rgb", "textured"}
_TARGET_WORDS = {"clean", "depth", "depths", "disp", "disparities", "disparity", "gt", "target", "targets"}
_SILENT_WORDS = {"hr", "output"}  # say nothing of what an image is, nor which
_AT_A_TIME = 1 << 20  # bytes that are read for a hash
_SHOWN = 3  # examples in a message


class Files(NamedTuple):
    """The files of a pair."""

    name: str
    guidance: Path
    target: Path


class FolderSource:
    """Pairs of files."""

    def __init__(self, files: Sequence[Files], *, missing: float | None) -> None:
        """Take files, and the value of a map that means that there is none."""
        self.files, self.missing = files, missing
        self.names: Sequence[str] = [pair.name for pair in files]

    def layout(self, index: int) -> Layout:
        """Return height and width, and the target's channels."""
        return image_files.layout(self.files[index].target)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return guidance, target and valid.

        Raises:
            ConfigError: A file is damaged.
        """
        _, guidance, target = self.files[index]
        file = guidance
        try:
            colour = image_files.read_colour(file)
            file = target
            return colour, *known_values(image_files.read_values(file), self.missing)
        except UnreadableError as error:
            raise ConfigError([f"{file}: {error}"]) from error

    def update(self, digest: blake2b, index: int) -> None:
        """Add the bytes of both files, and what counts as missing."""
        for path in self.files[index][1:]:
            digest.update(f"{path.suffix.lower()} {path.stat().st_size} {self.missing!r}\n".encode())
            with path.open("rb") as file:
                while block := file.read(_AT_A_TIME):
                    digest.update(block)


def open_folder(config: PairSourceConfig, *, path: str) -> FolderSource:
    """Return the pairs of a folder, in the order of their names.

    Raises:
        ConfigError: Everything that is wrong with the source.
    """
    faults = list(useless_keys(config, ("split", "size"), path=path, because="a folder of pairs"))
    root = Path(config.path).expanduser()
    try:
        guidance, target = _both_sides(config, root, path)
        pairs = _joined(guidance, target, root=root, path=path)
        pairs = [pairs[i] for i in part(len(pairs), config, path=path)]
        faults += [fault for pair in pairs for fault in _mismatches(pair, path)]
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from error
    if faults:
        raise ConfigError(faults)
    return FolderSource(pairs, missing=config.missing)


# -------------------------------------------------------------------------------------------------- finding the files


def _both_sides(config: PairSourceConfig, root: Path, path: str) -> tuple[list[Path], list[Path]]:
    """Return the files of all guidances and of all targets.

    Raises:
        ConfigError: There are none, or only one of the two patterns is given.
    """
    if (config.guidance is None) != (config.target is None):
        given, lacking = ("guidance", "target") if config.target is None else ("target", "guidance")
        raise ConfigError([f"{path}.{lacking}: is missing beside {path}.{given}; write both patterns, or neither"])
    if config.guidance is None or config.target is None:
        return _usual(config, root, path)
    sides, faults = [], list[str]()
    for key, pattern in (("guidance", config.guidance), ("target", config.target)):
        found = _matching(root, pattern)
        if not found:
            faults.append(
                f"{path}.{key}: {pattern!r} matches no image below {config.path}; write a pattern as RGB/*.png "
                f"(files that are read: {' '.join(image_files.SUFFIXES)})"
            )
        sides.append(found)
    if faults:
        raise ConfigError(faults)
    return sides[0], sides[1]


def _matching(root: Path, pattern: str) -> list[Path]:
    try:
        return _readable(root.glob(pattern))
    except (ValueError, NotImplementedError):  # pathlib refuses an empty pattern and an absolute one
        return []


def _readable(paths: Iterator[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in image_files.SUFFIXES and p.is_file() and p.name[0] != ".")


def _usual(config: PairSourceConfig, root: Path, path: str) -> tuple[list[Path], list[Path]]:
    """Find folders with the usual names, or else files with the usual words in their names.

    Raises:
        ConfigError: There are none, or more than one folder may be meant.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    of_guidance, of_target = ([p for p in folders if set(_words(p.name.lower())) & words] for words in _SIDES)
    if len(of_guidance) == len(of_target) == 1:
        guidance, target = (_readable(side[0].rglob("*")) for side in (of_guidance, of_target))
    else:
        there = _readable(root.glob("*"))
        target = [p for p in there if set(_words(p.stem.lower())) & _TARGET_WORDS]
        guidance = [p for p in there if set(_words(p.stem.lower())) & _GUIDANCE_WORDS and p not in target]
    if guidance and target:
        return guidance, target
    raise ConfigError(
        [
            f"{path}.path: {config.path} has no two folders with names as RGB and Depth, nor files as 1_color.png and "
            f"1_depth.png; say what its files are, as in guidance: RGB/*.png and target: Depth/*.png"
        ]
    )


_SIDES = (_GUIDANCE_WORDS, _TARGET_WORDS)


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Za-z]+|[0-9]+", name)


# ------------------------------------------------------------------------------------------------- joining and checking


def _joined(guidance: Sequence[Path], target: Sequence[Path], *, root: Path, path: str) -> list[Files]:
    """Return the pairs: two files whose names are the same but for the words that tell the sides apart.

    Raises:
        ConfigError: A file has no partner, or several.
    """
    if len(guidance) == len(target) == 1:
        return [Files(_name(guidance[0], root) or guidance[0].stem, guidance[0], target[0])]
    faults: list[str] = []
    left, right = (_by_key(side, root, path, faults) for side in (guidance, target))
    for mine, other, what in ((left, right, "target"), (right, left, "guidance")):
        alone = [str(file.relative_to(root)) for key, file in mine.items() if key not in other]
        if alone:
            faults.append(
                f"{path}.path: {_some(alone)} {'has' if len(alone) == 1 else 'have'} no {what} ({len(guidance)} files "
                f"of guidance, {len(target)} of targets); partners have the same name but for words as color and depth"
            )
    if faults:
        raise ConfigError(faults)
    return [Files(_name(left[key], root), left[key], right[key]) for key in sorted(left)]


def _name(file: Path, root: Path) -> str:
    """Return what two partners' names have in common: `scene1/RGB/0007_color.png` is scene1/0007."""
    ignored = _GUIDANCE_WORDS | _TARGET_WORDS | _SILENT_WORDS
    parts = file.relative_to(root).with_suffix("").parts
    kept = ["_".join(word for word in _words(part) if word.lower() not in ignored) for part in parts]
    return "/".join(word for word in kept if word)


def _by_key(files: Sequence[Path], root: Path, path: str, faults: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        first = found.setdefault(_name(file, root).lower(), file)
        if first != file:
            faults.append(
                f"{path}.path: {first.relative_to(root)} and {file.relative_to(root)} would belong to the same pair; "
                "name the files apart, or write guidance and target patterns that match one of them"
            )
    return found


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _mismatches(pair: Files, path: str) -> Iterator[str]:
    """Yield what is wrong with the files of a pair, by their headers."""
    sizes: list[tuple[int, int]] = []
    for file in (pair.guidance, pair.target):
        try:
            sizes.append(image_files.layout(file, colour=file == pair.guidance).size)
        except UnreadableError as error:
            yield f"{path}.path: {file} {error}"
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        (height, width), (other_height, other_width) = sizes
        yield (
            f"{path}.path: {pair.guidance} has {height} x {width} pixels and {pair.target.name} {other_height} x "
            f"{other_width}; both are needed at the same size (the small input is made of the target)"
        )
