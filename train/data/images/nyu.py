"""NYU Depth v2's labeled frames (Silberman et al. 2012): the published arrays, or the original file.

N, H, W  frames, height, width

The arrays are those published by the DKN authors: train_images_split.npy, train_depth_split.npy, test_images_v2.npy,
test_depth.npy and test_minmax.npy, (2, N): the maximum and minimum of each test frame in meters, which convert depth
normalized per frame back to meters. There is no such file for training frames: their depth may stay normalized, as
training normalizes it anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig
from train.data.images.image_files import Layout
from train.data.images.sources import Content, ignored_keys, known_values, part

if TYPE_CHECKING:
    from hashlib import blake2b

TRAINING_FRAMES = 1000  # of the labeled file; the other 449 are for testing
_FILES = {
    "training": ("train_images_split.npy", "train_depth_split.npy"),
    "test": ("test_images_v2.npy", "test_depth.npy"),
}
_MINMAX = "test_minmax.npy"
_TOLERANCE = 1e-3  # for distinguishing normalized depth from meters

ReadFrame = Callable[[int], np.ndarray]


class FrameSource:
    """Frames of two arrays on disk."""

    def __init__(self, frames: range, *, size: tuple[int, int], color: ReadFrame, depth: ReadFrame) -> None:
        """Initialize from frame numbers and functions that read a frame.

        Args:
            frames: Frame numbers.
            size: Height and width.
            color: Returns the color of a frame, (H, W, 3), from 0 to 1.
            depth: Returns the depth of a frame, (H, W).
        """
        self.frames, self.size, self.color, self.depth = frames, size, color, depth
        self.missing: float | None = None
        self.names: Sequence[str] = [f"nyu-{frame:04d}" for frame in frames]

    def layout(self, index: int) -> Layout:
        """Return height and width, and the target's channels."""
        return Layout(self.size, 1)

    def read(self, index: int) -> Content:
        """Return guidance, target and valid."""
        color = self.color(self.frames[index])
        depth = self.depth(self.frames[index]).astype(np.float32)
        return Content(color, *known_values(depth[:, :, None], self.missing))

    def update(self, digest: blake2b, index: int) -> None:
        """Hash the values of a frame and the value that marks missing pixels."""
        digest.update(f"{self.size} {self.missing!r}\n".encode())
        for values in (self.color(self.frames[index]), self.depth(self.frames[index])):
            digest.update(np.ascontiguousarray(values, np.float32).tobytes())


def looks_like_arrays(folder: Path) -> bool:
    """Return whether a folder contains any of the published arrays."""
    return any((folder / name).exists() for names in _FILES.values() for name in names)


def open_arrays(config: PairSourceConfig, *, path: str) -> FrameSource:
    """Return the frames of the published arrays for `split`.

    Raises:
        ConfigError: With every fault of the source.
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
        color=_color_reader(images, names[0], path),
        depth=depths.__getitem__,
    )
    normalized = _is_normalized(depths[source.frames[0]])
    if config.split == "test":
        source.depth = _in_meters(depths, normalized, source.frames[0], folder / _MINMAX, path)
    # In normalized depth, zero is the nearest point of a frame, not a missing pixel.
    source.missing = None if normalized else config.missing
    return source


def open_mat(config: PairSourceConfig, *, path: str) -> FrameSource:
    """Return the frames of nyu_depth_v2_labeled.mat, the first 1000 for training or the others for testing.

    Matlab's axis order is the reverse of ours: its images are (N, 3, W, H) and its depths (N, W, H).

    Raises:
        ConfigError: With every fault of the source.
    """
    import h5py  # imported here, as nothing else needs it

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
        color=lambda i: _unit(images[i].transpose(2, 1, 0), 255),
        depth=lambda i: depths[i].T,
    )
    source.missing = config.missing
    return source


# ------------------------------------------------------------------------------------------------------ checks


def _require_keys(config: PairSourceConfig, what: str, path: str) -> None:
    faults = list(ignored_keys(config, ("guidance", "target", "input", "size"), path=path, because=what))
    if config.split is None:
        faults.append(f"{path}.split: missing; {what} has two splits: write training or test")
    if faults:
        raise ConfigError(faults)


def _loaded(files: Sequence[Path], path: str) -> list[np.ndarray]:
    arrays, faults = [], list[str]()
    for file in files:
        try:
            arrays.append(np.load(file, mmap_mode="r"))
        except (OSError, ValueError, EOFError) as error:
            reason = "does not exist" if not file.exists() else f"is not a numeric array ({error})"
            faults.append(f"{path}.path: {file} {reason}; the split needs {' and '.join(f.name for f in files)}")
    if faults:
        raise ConfigError(faults)
    return arrays


def _require_shapes(images: np.ndarray, depths: np.ndarray, names: Sequence[str], path: str) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or depths.ndim != 3 or 0 in depths.shape:
        fault = "images must be (N, H, W, 3) and depth (N, H, W)"
    elif images.shape[:3] != depths.shape:
        fault = "both must have the same number of frames and the same size"
    else:
        return
    raise ConfigError([f"{path}.path: {names[0]} has shape {images.shape} and {names[1]} {depths.shape}; {fault}"])


# ------------------------------------------------------------------------------------------------- units


def _color_reader(images: np.ndarray, name: str, path: str) -> ReadFrame:
    """Return a function that reads color from 0 to 1; the first frame decides whether floats range to 1 or to 255."""
    if images.dtype == np.uint8:
        return lambda i: _unit(images[i], 255)
    largest = float(images[0].max()) if images.dtype.kind == "f" else np.inf
    if not 0 <= largest <= 255:
        raise ConfigError(
            [f"{path}.path: {name} contains {images.dtype} up to {largest:g}; colors must range from 0 to 1 or 255"]
        )
    return lambda i: _unit(images[i], 1 if largest <= 1 else 255)


def _unit(values: np.ndarray, largest: int) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32) / np.float32(largest)


def _is_normalized(depth: np.ndarray) -> bool:
    return abs(float(depth.min())) < _TOLERANCE and abs(float(depth.max()) - 1) < _TOLERANCE


def _in_meters(depths: np.ndarray, normalized: bool, frame: int, file: Path, path: str) -> ReadFrame:
    """Return a function that reads test depth in meters; `frame` is the frame used to check the units."""
    if not normalized and not file.exists():
        return depths.__getitem__
    [minmax] = _loaded([file], path)
    if minmax.shape != (2, len(depths)) or not (minmax[0] >= minmax[1]).all():
        raise ConfigError(
            [
                f"{path}.path: {file} has shape {minmax.shape}; {len(depths)} frames need (2, {len(depths)}), "
                "maxima first, then minima"
            ]
        )
    if normalized:
        return lambda i: depths[i] * (minmax[0, i] - minmax[1, i]) + minmax[1, i]
    extremes = (float(depths[frame].max()), float(depths[frame].min()))
    if not np.allclose(extremes, minmax[:, frame], rtol=_TOLERANCE):
        raise ConfigError(
            [
                f"{path}.path: frame {frame} of the test depth ranges from {extremes[1]:g} to {extremes[0]:g}, neither "
                f"from 0 to 1 nor from {minmax[1, frame]:g} to {minmax[0, frame]:g} meters as in {file.name}"
            ]
        )
    return depths.__getitem__
