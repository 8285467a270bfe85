"""NYU Depth v2's labelled frames (Silberman et al. 2012): the published arrays, or the original file.

N, H, W  frames, height, width

The arrays are those that the DKN authors publish: train_images_split.npy, train_depth_split.npy, test_images_v2.npy,
test_depth.npy and test_minmax.npy, (2, N): the maximum and minimum of each test frame in metres. Depth that was brought
to 0 to 1 frame by frame is turned back into metres by the latter. Training frames have no such file: theirs may stay
from 0 to 1, which training does to them anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig
from train.data.images.image_files import Layout
from train.data.images.sources import known_values, part, useless_keys

if TYPE_CHECKING:
    from hashlib import blake2b

TRAINING_FRAMES = 1000  # of the labelled file; the other 449 are for testing
_FILES = {
    "training": ("train_images_split.npy", "train_depth_split.npy"),
    "test": ("test_images_v2.npy", "test_depth.npy"),
}
_MINMAX = "test_minmax.npy"
_TOLERANCE = 1e-3  # in what tells normalised depth from metres

ReadFrame = Callable[[int], np.ndarray]


class FrameSource:
    """Frames of two arrays that stay on disk."""

    def __init__(self, frames: range, *, size: tuple[int, int], colour: ReadFrame, depth: ReadFrame) -> None:
        """Take frames by their numbers, and what reads one.

        Args:
            frames: which ones.
            size: height and width.
            colour: gives a frame's (H, W, 3), integers or floats from 0 to 1 or to 255.
            depth: gives its (H, W).
        """
        self.frames, self.size, self.colour, self.depth = frames, size, colour, depth
        self.missing: float | None = None
        self.names: Sequence[str] = [f"nyu-{frame:04d}" for frame in frames]

    def layout(self, index: int) -> Layout:
        """Return height and width, and the target's channels."""
        return Layout(self.size, 1)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return guidance, target and valid."""
        colour = self.colour(self.frames[index])
        depth = self.depth(self.frames[index]).astype(np.float32)
        return colour, *known_values(depth[:, :, None], self.missing)

    def update(self, digest: blake2b, index: int) -> None:
        """Add the values of a frame, and what counts as missing."""
        digest.update(f"{self.size} {self.missing!r}\n".encode())
        for values in (self.colour(self.frames[index]), self.depth(self.frames[index])):
            digest.update(np.ascontiguousarray(values, np.float32).tobytes())


def looks_like_arrays(folder: Path) -> bool:
    """Tell whether a folder holds any of the published arrays."""
    return any((folder / name).exists() for names in _FILES.values() for name in names)


def open_arrays(config: PairSourceConfig, *, path: str) -> FrameSource:
    """Return the frames of the published arrays, those of `split`.

    Raises:
        ConfigError: Everything that is wrong with the source.
    """
    folder = Path(config.path).expanduser()
    _require_keys(config, "a folder of NYU's arrays", path)
    assert config.split is not None
    names = _FILES[config.split]
    images, depths = _loaded([folder / name for name in names], path)
    _require_shapes(images, depths, names, path)
    source = FrameSource(
        part(len(images), config, path=path),
        size=(depths.shape[1], depths.shape[2]),
        colour=_colour_reader(images, names[0], path),
        depth=depths.__getitem__,
    )
    normalised = _is_normalised(depths[source.frames[0]])
    if config.split == "test":
        source.depth = _in_metres(depths, normalised, source.frames[0], folder / _MINMAX, path)
    # In normalised depth a zero is the nearest point of a frame, not a hole.
    source.missing = None if normalised else config.missing
    return source


def open_mat(config: PairSourceConfig, *, path: str) -> FrameSource:
    """Return the frames of nyu_depth_v2_labeled.mat, the first 1000 for training or the others for testing.

    Matlab's order of axes is the reverse of ours: images are (N, 3, W, H) and depths (N, W, H) there.

    Raises:
        ConfigError: Everything that is wrong with the source.
    """
    import h5py  # here, as nothing else needs it

    _require_keys(config, "nyu_depth_v2_labeled.mat", path)
    try:
        file: Any = h5py.File(Path(config.path).expanduser(), "r")
        images, depths = file["images"], file["depths"]
    except (OSError, KeyError) as error:
        raise ConfigError(
            [f"{path}.path: {config.path} is not nyu_depth_v2_labeled.mat, HDF5 with images and depths ({error})"]
        ) from error
    if images.ndim != 4 or images.shape[1] != 3 or depths.shape != (images.shape[0], *images.shape[2:]):
        raise ConfigError(
            [
                f"{path}.path: {config.path} has images of {images.shape} and depths of {depths.shape}; "
                "nyu_depth_v2_labeled.mat has (N, 3, W, H) and (N, W, H)"
            ]
        )
    count, width, height = depths.shape
    first = 0 if config.split == "training" else min(TRAINING_FRAMES, count)
    last = min(TRAINING_FRAMES, count) if config.split == "training" else count
    chosen = part(last - first, config, path=path)
    source = FrameSource(
        range(first + chosen.start, first + chosen.stop),
        size=(height, width),
        colour=lambda i: _unit(images[i].transpose(2, 1, 0), 255),
        depth=lambda i: depths[i].T,
    )
    source.missing = config.missing
    return source


# ------------------------------------------------------------------------------------------------------ what is wrong


def _require_keys(config: PairSourceConfig, what: str, path: str) -> None:
    faults = list(useless_keys(config, ("guidance", "target", "size"), path=path, because=what))
    if config.split is None:
        faults.append(f"{path}.split: is missing, and {what} has two; write training or test")
    if faults:
        raise ConfigError(faults)


def _loaded(files: Sequence[Path], path: str) -> list[np.ndarray]:
    arrays, faults = [], list[str]()
    for file in files:
        try:
            arrays.append(np.load(file, mmap_mode="r"))
        except (OSError, ValueError, EOFError) as error:
            reason = "is not there" if not file.exists() else f"is no array of numbers ({error})"
            faults.append(f"{path}.path: {file} {reason}; the split needs {' and '.join(f.name for f in files)}")
    if faults:
        raise ConfigError(faults)
    return arrays


def _require_shapes(images: np.ndarray, depths: np.ndarray, names: Sequence[str], path: str) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or depths.ndim != 3 or 0 in depths.shape:
        fault = "images are (N, H, W, 3) and depth is (N, H, W)"
    elif images.shape[:3] != depths.shape:
        fault = "both need the same number of frames, and one size"
    else:
        return
    raise ConfigError([f"{path}.path: {names[0]} is {images.shape} and {names[1]} {depths.shape}; {fault}"])


# ------------------------------------------------------------------------------------------------- what values mean


def _colour_reader(images: np.ndarray, name: str, path: str) -> ReadFrame:
    """Return what reads colour from 0 to 1; the first frame tells whether floats are out of 1 or of 255."""
    if images.dtype == np.uint8:
        return lambda i: _unit(images[i], 255)
    largest = float(images[0].max()) if images.dtype.kind == "f" else np.inf
    if not 0 <= largest <= 255:
        raise ConfigError([f"{path}.path: {name} holds {images.dtype} up to {largest:g}; colour is 0 to 1 or 0 to 255"])
    return lambda i: _unit(images[i], 1 if largest <= 1 else 255)


def _unit(values: np.ndarray, largest: int) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32) / np.float32(largest)


def _is_normalised(depth: np.ndarray) -> bool:
    return abs(float(depth.min())) < _TOLERANCE and abs(float(depth.max()) - 1) < _TOLERANCE


def _in_metres(depths: np.ndarray, normalised: bool, frame: int, file: Path, path: str) -> ReadFrame:
    """Return what reads test depth in metres; `frame` is one by which to judge."""
    if not normalised and not file.exists():
        return depths.__getitem__
    [minmax] = _loaded([file], path)
    if minmax.shape != (2, len(depths)) or not (minmax[0] >= minmax[1]).all():
        raise ConfigError(
            [
                f"{path}.path: {file} is {minmax.shape}; for {len(depths)} frames it is (2, {len(depths)}), the "
                "maxima above the minima"
            ]
        )
    if normalised:
        return lambda i: depths[i] * (minmax[0, i] - minmax[1, i]) + minmax[1, i]
    found = (float(depths[frame].max()), float(depths[frame].min()))
    if not np.allclose(found, minmax[:, frame], rtol=_TOLERANCE):
        raise ConfigError(
            [
                f"{path}.path: frame {frame} of the test depth goes from {found[1]:g} to {found[0]:g}, neither from 0 "
                f"to 1 nor from {minmax[1, frame]:g} to {minmax[0, frame]:g} metres as {file.name} says"
            ]
        )
    return depths.__getitem__
