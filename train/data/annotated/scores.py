"""Score maps of images: what a segmentation network says of the classes, at its own coarse size.

C  classes with the background
h, w  height and width of a score map
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import torch

from modeling.segmentation.configuration_bap import SegmenterConfig
from modeling.segmentation.facts_bap import STRIDE, VOID, SegmenterShape
from modeling.segmentation.modeling_bap import Segmenter
from train.config.errors import ConfigError
from train.data.annotated.collection import MOST_FAULTS, AnnotatedImages
from train.data.drawn.draws import Draws

_KEY = "task.data.scores"
_NOISE = 0x5C0E5  # random stream, separate from that of crops
_DEFAULT_NOISE = 0.1
_AT_A_TIME = 1 << 20  # bytes read for a hash


class ScoreMaps(Protocol):
    """The score maps of a collection of images, by index. Safe for concurrent reads by several threads."""

    def read(self, index: int) -> np.ndarray:
        """Return the scores of an image before the softmax, (C, h, w) float32.

        Raises:
            ConfigError: A file is damaged.
        """
        ...

    def faults(self) -> Iterator[str]:
        """Yield what keeps the score maps from being those of the images."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the result of `read`, besides the images."""
        ...


class MadeScores:
    """Scores made from the true masks: the share of each class in a cell, with noise, as far as a mask is known.

    They are scaled as the logits of a cosine classifier are. A cell without a labeled pixel has the same share of each.
    """

    def __init__(self, images: AnnotatedImages, *, stride: int | None, noise: float | None, seed: int) -> None:
        """Initialize from images whose masks are known, the side of a cell, and the noise of the shares."""
        self._images, self._seed = images, seed
        self._stride = STRIDE if stride is None else stride
        self._noise = _DEFAULT_NOISE if noise is None else noise

    def read(self, index: int) -> np.ndarray:
        """Return the scores of an image."""
        mask = self._images.read(index).mask
        assert mask is not None
        shares = class_shares(mask, len(self._images.classes), self._stride)
        noise = Draws(_NOISE, self._seed, 0, index).normal(shares.shape) * self._noise
        return ((shares + noise) * SegmenterShape.temperature).astype(np.float32)

    def faults(self) -> Iterator[str]:
        """Yield nothing: the masks are checked with the images."""
        yield from ()

    @property
    def fingerprint(self) -> str:
        """The settings."""
        return f"made {self._stride} {self._noise!r} {self._seed}"


def class_shares(mask: np.ndarray, num_classes: int, stride: int) -> np.ndarray:
    """Return the share of each class among the labeled pixels of each cell.

    Args:
        mask: uint8 (H, W), with VOID.
        num_classes: C.
        stride: Side of a cell in pixels; cells at the right and lower edges may be smaller.

    Returns:
        float64 (C, ceil(H / stride), ceil(W / stride)).
    """
    rows, columns = (-(-side // stride) for side in mask.shape)
    whole = np.full((rows * stride, columns * stride), VOID, np.uint8)
    whole[: mask.shape[0], : mask.shape[1]] = mask
    cells = whole.reshape(rows, stride, columns, stride).swapaxes(1, 2).reshape(rows, columns, -1)
    counts = np.stack([(cells == number).sum(axis=2) for number in range(num_classes)]).astype(np.float64)
    labeled = counts.sum(axis=0)
    return np.where(labeled > 0, counts / np.maximum(labeled, 1), 1 / num_classes)


class ScoreFiles:
    """Scores from a folder with a file NAME.npy for each image."""

    def __init__(self, folder: Path, images: AnnotatedImages) -> None:
        """Initialize from the folder and the images."""
        self._folder, self._images = folder, images

    def read(self, index: int) -> np.ndarray:
        """Return the scores of an image."""
        path = self._path(index)
        scores = np.array(_opened(path), np.float32)
        if not np.isfinite(scores).all():
            raise ConfigError([f"{path}: has scores that are no finite numbers; write log-probabilities or logits"])
        return scores

    def faults(self) -> Iterator[str]:
        """Yield a fault for each image without scores of its classes, at most MOST_FAULTS."""
        repeated, found = self._images.repeated_names(), 0
        if repeated:
            yield f"{_KEY}: scores are found by the names of images, and {repeated[0]} is the name of more than one"
            return
        for index in range(len(self._images)):
            for fault in self._faults_of(index):
                found += 1
                yield fault
            if found >= MOST_FAULTS:
                yield "... (later files were not looked at)"
                return

    def _faults_of(self, index: int) -> Iterator[str]:
        path, wanted = self._path(index), len(self._images.classes)
        if not path.is_file():
            yield f"{_KEY}: {path} does not exist; write the scores of an image as NAME.npy (classes, height, width)"
            return
        try:
            scores = _opened(path)
        except ConfigError as error:
            yield from error.faults
            return
        if scores.ndim != 3 or scores.shape[0] != wanted or not scores.size or scores.dtype.kind != "f":
            yield (
                f"{_KEY}: {path} has {scores.dtype} values of shape {scores.shape}; write floating-point ones of shape "
                f"({wanted}, height, width), one map for the background and each of {wanted - 1} classes"
            )

    @property
    def fingerprint(self) -> str:
        """A hash of all files."""
        digest = hashlib.blake2b(digest_size=16)
        for index in range(len(self._images)):
            _hash_file(digest, self._path(index))
        return digest.hexdigest()

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._images.name(index)}.npy"


def _opened(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError([f"{path}: cannot be read as an array ({error})"]) from None


class SegmenterScores:
    """Scores of an exported segmentation network, which sees whole images; each is computed once and kept."""

    def __init__(self, folder: Path, images: AnnotatedImages) -> None:
        """Initialize from a folder that `open_scores` has checked."""
        self._folder, self._images = folder, images
        self._network: Segmenter | None = None
        self._known: dict[int, np.ndarray] = {}
        self._lock = Lock()

    @torch.no_grad()
    def read(self, index: int) -> np.ndarray:
        """Return the scores of an image."""
        with self._lock:
            if index not in self._known:
                if self._network is None:
                    self._network = Segmenter.from_pretrained(self._folder, local_files_only=True).eval()
                image = np.ascontiguousarray(self._images.read(index).image.transpose(2, 0, 1))
                logits = self._network(torch.from_numpy(image)[None] / 255).logits
                self._known[index] = logits[0].float().numpy()
            return self._known[index]

    def faults(self) -> Iterator[str]:
        """Yield a fault if the network has other classes than the images."""
        theirs, ours = SegmenterConfig.from_pretrained(self._folder).classes, self._images.classes
        if theirs != ours:
            known, wanted = (", ".join(names[1:]) for names in (theirs, ours))
            yield f"{_KEY}: {self._folder} knows the classes {known}; the images have {wanted}"

    @property
    def fingerprint(self) -> str:
        """A hash of the network's files."""
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted((self._folder / "config.json", *self._folder.glob("*.safetensors"))):
            _hash_file(digest, path)
        return digest.hexdigest()


def _hash_file(digest: hashlib.blake2b, path: Path) -> None:
    digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    with path.open("rb") as file:
        while block := file.read(_AT_A_TIME):
            digest.update(block)


def open_scores(
    path: str | None, images: AnnotatedImages, *, stride: int | None, noise: float | None, seed: int
) -> ScoreMaps:
    """Open the score maps of images.

    Args:
        path: An exported segmentation network, or a folder of files; None: they are made from the masks.
        images: The images.
        stride: Side of a cell of scores that are made, in pixels; None: that of the networks.
        noise: Standard deviation of the shares of scores that are made; None: 0.1.
        seed: Of that noise.

    Raises:
        ConfigError: The folder does not exist, or holds another kind of model.
    """
    if path is None:
        return MadeScores(images, stride=stride, noise=noise, seed=seed)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(
            [f"{_KEY}: {path} {problem}; give the folder of an exported segmentation network, or one of .npy files"]
        )
    config = folder / "config.json"
    if not config.is_file():
        return ScoreFiles(folder, images)
    kind = _model_type(config)
    if kind != SegmenterConfig.model_type:
        raise ConfigError(
            [f"{_KEY}: {path} holds a model of type {kind}; give an exported run of the task semantic_segmentation"]
        )
    return SegmenterScores(folder, images)


def _model_type(config: Path) -> object:
    try:
        return json.loads(config.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError([f"{_KEY}: {config} cannot be read ({error})"]) from None
