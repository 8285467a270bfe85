"""Folders of image pairs, with files detected by patterns or by common names."""

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
from train.data.images.sources import ignored_keys, known_values, part

if TYPE_CHECKING:
    from hashlib import blake2b

_GUIDANCE_WORDS = {"color", "colour", "guidance", "guide", "im", "image", "images", "img", "left", "rgb", "textured"}
_TARGET_WORDS = {"clean", "depth", "depths", "disp", "disparities", "disparity", "gt", "target", "targets"}
_IGNORED_WORDS = {"hr", "output"}  # identify neither the side nor the pair
_AT_A_TIME = 1 << 20  # bytes read for a hash
_MAX_EXAMPLES = 3  # in a message


class Files(NamedTuple):
    """The files of a pair."""

    name: str
    guidance: Path
    target: Path


class FolderSource:
    """A source of pairs stored as files."""

    def __init__(self, files: Sequence[Files], *, missing: float | None) -> None:
        """Initialize from files and the value that marks missing pixels."""
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
            color = image_files.read_color(file)
            file = target
            return color, *known_values(image_files.read_values(file), self.missing)
        except UnreadableError as error:
            raise ConfigError([f"{file}: {error}"]) from error

    def update(self, digest: blake2b, index: int) -> None:
        """Hash the bytes of both files and the value that marks missing pixels."""
        for path in self.files[index][1:]:
            digest.update(f"{path.suffix.lower()} {path.stat().st_size} {self.missing!r}\n".encode())
            with path.open("rb") as file:
                while block := file.read(_AT_A_TIME):
                    digest.update(block)


def open_folder(config: PairSourceConfig, *, path: str) -> FolderSource:
    """Return the pairs of a folder, ordered by name.

    Raises:
        ConfigError: With every fault of the source.
    """
    faults = list(ignored_keys(config, ("split", "size"), path=path, because="a folder of pairs"))
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
        present, missing = ("guidance", "target") if config.target is None else ("target", "guidance")
        raise ConfigError(
            [f"{path}.{missing}: missing although {path}.{present} is set; set both patterns, or neither"]
        )
    if config.guidance is None or config.target is None:
        return _detected(config, root, path)
    sides, faults = [], list[str]()
    for key, pattern in (("guidance", config.guidance), ("target", config.target)):
        files = _matching(root, pattern)
        if not files:
            faults.append(
                f"{path}.{key}: {pattern!r} matches no image below {config.path}; write a pattern like RGB/*.png "
                f"(supported files: {' '.join(image_files.SUFFIXES)})"
            )
        sides.append(files)
    if faults:
        raise ConfigError(faults)
    return sides[0], sides[1]


def _matching(root: Path, pattern: str) -> list[Path]:
    try:
        return _readable(root.glob(pattern))
    except (ValueError, NotImplementedError):  # pathlib rejects empty and absolute patterns
        return []


def _readable(paths: Iterator[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in image_files.SUFFIXES and p.is_file() and p.name[0] != ".")


def _detected(config: PairSourceConfig, root: Path, path: str) -> tuple[list[Path], list[Path]]:
    """Find folders with common names, or else files with common words in their names.

    Raises:
        ConfigError: There are none, or the folders are ambiguous.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    of_guidance, of_target = ([p for p in folders if set(_words(p.name.lower())) & words] for words in _SIDES)
    if len(of_guidance) == len(of_target) == 1:
        guidance, target = (_readable(side[0].rglob("*")) for side in (of_guidance, of_target))
    else:
        files = _readable(root.glob("*"))
        target = [p for p in files if set(_words(p.stem.lower())) & _TARGET_WORDS]
        guidance = [p for p in files if set(_words(p.stem.lower())) & _GUIDANCE_WORDS and p not in target]
    if guidance and target:
        return guidance, target
    raise ConfigError(
        [
            f"{path}.path: {config.path} contains neither two folders with names like RGB and Depth nor files like "
            f"1_color.png and 1_depth.png; set patterns, for example guidance: RGB/*.png and target: Depth/*.png"
        ]
    )


_SIDES = (_GUIDANCE_WORDS, _TARGET_WORDS)


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Za-z]+|[0-9]+", name)


# ------------------------------------------------------------------------------------------------- joining and checking


def _joined(guidance: Sequence[Path], target: Sequence[Path], *, root: Path, path: str) -> list[Files]:
    """Pair files whose names differ only in the words that mark the two sides.

    Raises:
        ConfigError: A file has no partner, or several.
    """
    if len(guidance) == len(target) == 1:
        return [Files(_name(guidance[0], root) or guidance[0].stem, guidance[0], target[0])]
    faults: list[str] = []
    left, right = (_by_key(side, root, path, faults) for side in (guidance, target))
    for own, other, what in ((left, right, "target"), (right, left, "guidance")):
        alone = [str(file.relative_to(root)) for key, file in own.items() if key not in other]
        if alone:
            faults.append(
                f"{path}.path: {_some(alone)} {'has' if len(alone) == 1 else 'have'} no {what} ({len(guidance)} files "
                f"of guidance, {len(target)} of target); partners have equal names but for words like color and depth"
            )
    if faults:
        raise ConfigError(faults)
    return [Files(_name(left[key], root), left[key], right[key]) for key in sorted(left)]


def _name(file: Path, root: Path) -> str:
    """Return the name shared by two partners: scene1/0007 for `scene1/RGB/0007_color.png`."""
    ignored = _GUIDANCE_WORDS | _TARGET_WORDS | _IGNORED_WORDS
    parts = file.relative_to(root).with_suffix("").parts
    names = ["_".join(word for word in _words(part) if word.lower() not in ignored) for part in parts]
    return "/".join(name for name in names if name)


def _by_key(files: Sequence[Path], root: Path, path: str, faults: list[str]) -> dict[str, Path]:
    by_key: dict[str, Path] = {}
    for file in files:
        first = by_key.setdefault(_name(file, root).lower(), file)
        if first != file:
            faults.append(
                f"{path}.path: {first.relative_to(root)} and {file.relative_to(root)} belong to the same pair; "
                "rename one of them, or set guidance and target patterns that match only one"
            )
    return by_key


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_EXAMPLES
    return ", ".join(names[:_MAX_EXAMPLES]) + (f" and {rest} more" if rest > 0 else "")


def _mismatches(pair: Files, path: str) -> Iterator[str]:
    """Yield the faults of a pair's files, from their headers."""
    sizes: list[tuple[int, int]] = []
    for file in (pair.guidance, pair.target):
        try:
            sizes.append(image_files.layout(file, color=file == pair.guidance).size)
        except UnreadableError as error:
            yield f"{path}.path: {file} {error}"
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        (height, width), (other_height, other_width) = sizes
        yield (
            f"{path}.path: {pair.guidance} has {height} x {width} pixels and {pair.target.name} {other_height} x "
            f"{other_width}; both must have the same size (the low-resolution input is produced from the target)"
        )
