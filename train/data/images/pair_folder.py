"""Folders of image pairs, with files detected by patterns or by common names."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig
from train.data.images import image_files
from train.data.images.image_files import Layout, UnreadableError
from train.data.images.resize import fill_holes
from train.data.images.sources import Content, ignored_keys, known_values, part

if TYPE_CHECKING:
    from hashlib import blake2b

_GUIDANCE_WORDS = {"color", "colour", "guidance", "guide", "im", "image", "images", "img", "left", "rgb", "textured"}
_TARGET_WORDS = {"clean", "depth", "depths", "disp", "disparities", "disparity", "gt", "target", "targets"}
_INPUT_WORDS = {"input", "inputs", "low", "lr", "noisy", "small"}
_IGNORED_WORDS = {"hr", "output"}  # identify neither the side nor the pair
_SIDES = ("guidance", "target", "input")
_AT_A_TIME = 1 << 20  # bytes read for a hash
_MAX_EXAMPLES = 3  # in a message


class Files(NamedTuple):
    """The files of a pair."""

    name: str
    guidance: Path
    target: Path
    input: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """Guidance, target and, if it is real, input."""
        return [self.guidance, self.target, *([] if self.input is None else [self.input])]


class FolderSource:
    """A source of pairs stored as files."""

    def __init__(self, files: Sequence[Files], *, missing: float | None) -> None:
        """Initialize from files and the value that marks missing pixels."""
        self.files, self.missing = files, missing
        self.names: Sequence[str] = [pair.name for pair in files]

    def layout(self, index: int) -> Layout:
        """Return height and width, the target's channels, and the size of a real input."""
        _, _, target, real = self.files[index]
        layout = image_files.layout(target)
        return layout if real is None else layout._replace(input_size=image_files.layout(real).size)

    def read(self, index: int) -> Content:
        """Return the images of a pair.

        Raises:
            ConfigError: A file is damaged.
        """
        _, guidance, target, real = self.files[index]
        file = guidance
        try:
            color = image_files.read_color(file)
            file = target
            values, valid = known_values(image_files.read_values(file), self.missing)
            if real is None:
                return Content(color, values, valid)
            file = real
            return Content(color, values, valid, _without_holes(image_files.read_values(file), self.missing))
        except UnreadableError as error:
            raise ConfigError([f"{file}: {error}"]) from error

    def update(self, digest: blake2b, index: int) -> None:
        """Hash the bytes of all files and the value that marks missing pixels."""
        for path in self.files[index].paths:
            digest.update(f"{path.suffix.lower()} {path.stat().st_size} {self.missing!r}\n".encode())
            with path.open("rb") as file:
                while block := file.read(_AT_A_TIME):
                    digest.update(block)


def _without_holes(values: np.ndarray, missing: float | None) -> np.ndarray:
    """Return a real input with the nearest known value in each hole; zeros if there is none."""
    known, valid = known_values(values, missing)
    return fill_holes(known, valid) if valid.any() else np.zeros_like(known)


def open_folder(config: PairSourceConfig, *, path: str) -> FolderSource:
    """Return the pairs of a folder, ordered by name.

    Raises:
        ConfigError: With every fault of the source.
    """
    faults = list(ignored_keys(config, ("split", "size"), path=path, because="a folder of pairs"))
    root = Path(config.path).expanduser()
    try:
        pairs = _joined(_sides(config, root, path), _patterns(config), root=root, path=path)
        pairs = [pairs[i] for i in part(len(pairs), config, path=path)]
        faults += [fault for pair in pairs for fault in _mismatches(pair, path)]
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from error
    if faults:
        raise ConfigError(faults)
    return FolderSource(pairs, missing=config.missing)


# -------------------------------------------------------------------------------------------------- finding the files


def _patterns(config: PairSourceConfig) -> dict[str, str]:
    """Return the patterns that are given, by side."""
    patterns = {side: getattr(config, side) for side in _SIDES}
    return {side: pattern for side, pattern in patterns.items() if pattern is not None}


def _sides(config: PairSourceConfig, root: Path, path: str) -> dict[str, list[Path]]:
    """Return the files of all guidances, of all targets and, if it has a pattern, of all inputs.

    Raises:
        ConfigError: There are none, or patterns are given for some sides only.
    """
    patterns = _patterns(config)
    if not patterns:
        return _detected(config, root, path)
    if missing := [side for side in ("guidance", "target") if side not in patterns]:
        present, rest = next(iter(patterns)), "set both patterns, or neither"
        rest = "an input pattern needs both others" if present == "input" else rest
        raise ConfigError([f"{path}.{missing[0]}: missing although {path}.{present} is set; {rest}"])
    sides = {side: _matching(root, pattern) for side, pattern in patterns.items()}
    faults = [
        f"{path}.{side}: {patterns[side]!r} matches no image below {config.path}; write a pattern like RGB/*.png "
        f"(supported files: {' '.join(image_files.SUFFIXES)})"
        for side, files in sides.items()
        if not files
    ]
    if faults:
        raise ConfigError(faults)
    return sides


def _matching(root: Path, pattern: str) -> list[Path]:
    try:
        return _readable(root.glob(pattern))
    except (ValueError, NotImplementedError):  # pathlib rejects empty and absolute patterns
        return []


def _readable(paths: Iterator[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in image_files.SUFFIXES and p.is_file() and p.name[0] != ".")


def _detected(config: PairSourceConfig, root: Path, path: str) -> dict[str, list[Path]]:
    """Find folders with common names, or else files with common words in their names.

    Raises:
        ConfigError: There are none, or the folders are ambiguous.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    of_guidance, of_target = ([p for p in folders if set(_words(p.name.lower())) & words] for words in _WORDS)
    if len(of_guidance) == len(of_target) == 1:
        guidance, target = (_readable(side[0].rglob("*")) for side in (of_guidance, of_target))
    else:
        files = _readable(root.glob("*"))
        target = [p for p in files if set(_words(p.stem.lower())) & _TARGET_WORDS]
        guidance = [p for p in files if set(_words(p.stem.lower())) & _GUIDANCE_WORDS and p not in target]
    if guidance and target:
        return {"guidance": guidance, "target": target}
    raise ConfigError(
        [
            f"{path}.path: {config.path} contains neither two folders with names like RGB and Depth nor files like "
            f"1_color.png and 1_depth.png; set patterns, for example guidance: RGB/*.png and target: Depth/*.png"
        ]
    )


_WORDS = (_GUIDANCE_WORDS, _TARGET_WORDS)


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Za-z]+|[0-9]+", name)


# ------------------------------------------------------------------------------------------------- joining and checking


def _joined(sides: Mapping[str, Sequence[Path]], patterns: Mapping[str, str], *, root: Path, path: str) -> list[Files]:
    """Return the files of each pair, ordered by name.

    Raises:
        ConfigError: A file has no partner, or several.
    """
    guidance, *others = ((side, files) for side, files in sides.items())
    partners = [
        _partners(guidance[1], files, what=side, patterns=patterns, root=root, path=path) for side, files in others
    ]
    named = [(_name(file, root) or file.stem, file) for file in guidance[1]]
    ordered = sorted(named, key=lambda pair: pair[0].lower())
    return [Files(name, file, *(each[file] for each in partners)) for name, file in ordered]


def _partners(
    guidance: Sequence[Path],
    other: Sequence[Path],
    *,
    what: str,
    patterns: Mapping[str, str],
    root: Path,
    path: str,
) -> dict[Path, Path]:
    """Return the target, or the input, of each guidance.

    Partners are files whose patterns' wildcards match the same text; or else, and where there are no patterns, files
    whose names differ only in the words that mark the sides.

    Raises:
        ConfigError: A file has no partner, or several.
    """
    if len(guidance) == len(other) == 1:
        return {guidance[0]: other[0]}
    sides = {"guidance": guidance, what: other}
    ways = [[_by_name(files, root, what) for files in sides.values()]]
    if patterns:
        ways.insert(0, [_by_wildcards(files, patterns[side], root) for side, files in sides.items()])
    for left, right in ways:
        if left.keys() == right.keys() and all(len(files) == 1 for files in (*left.values(), *right.values())):
            return {file: right[key][0] for key, [file] in left.items()}
    left, right = max(ways, key=lambda way: len(way[0].keys() & way[1].keys()))
    raise ConfigError(
        [*_several(left, right, root, path), *_alone(left, right, what, root, path, is_pattern=bool(patterns))]
    )


Keyed = Mapping[Hashable, Sequence[Path]]


def _several(left: Keyed, right: Keyed, root: Path, path: str) -> Iterator[str]:
    """Yield a fault for each two files of a side that belong to the same pair."""
    for files in (*left.values(), *right.values()):
        for file in files[1:]:
            yield (
                f"{path}.path: {files[0].relative_to(root)} and {file.relative_to(root)} belong to the same pair; "
                "rename one of them, or set guidance and target patterns that match only one"
            )


def _alone(left: Keyed, right: Keyed, what: str, root: Path, path: str, *, is_pattern: bool) -> Iterator[str]:
    """Yield a fault for the guidances without a partner, and one for the partners without a guidance."""
    rule = "the same text at the wildcards of the patterns, or " if is_pattern else ""
    counts = [sum(map(len, side.values())) for side in (left, right)]
    for own, their, missing in ((left, right, what), (right, left, "guidance")):
        alone = [str(file.relative_to(root)) for key, files in own.items() if key not in their for file in files]
        if alone:
            yield (
                f"{path}.path: {_some(alone)} {'has' if len(alone) == 1 else 'have'} no {missing} ({counts[0]} files "
                f"of guidance, {counts[1]} of {what}); partners have {rule}equal names but for words like color and "
                "depth"
            )


def _by_wildcards(files: Sequence[Path], pattern: str, root: Path) -> dict[Hashable, list[Path]]:
    """Return files by the text that the wildcards of a pattern match in their paths."""
    pieces = _WILDCARD.split(pattern)  # texts and, between them, wildcards
    expression = re.compile("".join(_as_group(each) if n % 2 else re.escape(each) for n, each in enumerate(pieces)))
    matches = ((expression.fullmatch(file.relative_to(root).as_posix()), file) for file in files)
    return _grouped((match.groups() if match else file, file) for match, file in matches)


_WILDCARD = re.compile(r"(\*\*/|\*|\?|\[[^]]+\])")


def _as_group(wildcard: str) -> str:
    """Return the group of a regular expression that matches what a wildcard does."""
    groups = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}
    return groups.get(wildcard) or f"({wildcard.replace('[!', '[^')})"


def _name(file: Path, root: Path, also_ignored: Collection[str] = ()) -> str:
    """Return the name shared by two partners: scene1/0007 for `scene1/RGB/0007_color.png`."""
    ignored = _GUIDANCE_WORDS | _TARGET_WORDS | _IGNORED_WORDS | set(also_ignored)
    parts = file.relative_to(root).with_suffix("").parts
    names = ["_".join(word for word in _words(part) if word.lower() not in ignored) for part in parts]
    return "/".join(name for name in names if name)


def _by_name(files: Sequence[Path], root: Path, what: str) -> dict[Hashable, list[Path]]:
    """Return files by their names without the words that mark the sides, for finding targets or inputs."""
    ignored = _INPUT_WORDS if what == "input" else ()
    return _grouped((_name(file, root, ignored).lower(), file) for file in files)


def _grouped(keyed: Iterable[tuple[Hashable, Path]]) -> dict[Hashable, list[Path]]:
    groups: dict[Hashable, list[Path]] = {}
    for key, file in keyed:
        groups.setdefault(key, []).append(file)
    return groups


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_EXAMPLES
    return ", ".join(names[:_MAX_EXAMPLES]) + (f" and {rest} more" if rest > 0 else "")


def _mismatches(pair: Files, path: str) -> Iterator[str]:
    """Yield the faults of a pair's files, from their headers."""
    layouts: list[Layout] = []
    for file in pair.paths:
        try:
            layouts.append(image_files.layout(file, color=file == pair.guidance))
        except UnreadableError as error:
            yield f"{path}.path: {file} {error}"
    if len(layouts) < len(pair.paths):
        return
    sizes = [layout.size for layout in layouts]
    (height, width), (other_height, other_width), *of_input = sizes
    if sizes[0] != sizes[1]:
        cause = "the low-resolution input is produced from the target"
        if pair.input is not None:
            cause = "the low-resolution image is the input, and the target the truth at full resolution"
        yield (
            f"{path}.path: {pair.guidance} has {height} x {width} pixels and {pair.target.name} {other_height} x "
            f"{other_width}; both must have the same size ({cause})"
        )
    elif of_input and input_scale(sizes[1], of_input[0]) is None:
        yield (
            f"{path}.input: {pair.input} has {of_input[0][0]} x {of_input[0][1]} pixels, which is no whole fraction of "
            f"the {other_height} x {other_width} of {pair.target.name}; both must show the same scene in the same "
            "orientation"
        )
    elif of_input and layouts[1].channels != layouts[2].channels:
        yield (
            f"{path}.input: {pair.input} has {layouts[2].channels} channels and {pair.target.name} "
            f"{layouts[1].channels}; both must be maps, or both in color"
        )


def input_scale(size: tuple[int, int], small: tuple[int, int]) -> int | None:
    """Return the factor by which an input is smaller than its target; None if its aspect is another one.

    Args:
        size: Height and width of the target.
        small: Height and width of the input. Where the factor does not divide a side, it may be rounded up or down.
    """
    scale = max(1, round(size[0] / small[0]))
    fits = all(each in (side // scale, -(-side // scale)) for side, each in zip(size, small, strict=True))
    return scale if fits else None
