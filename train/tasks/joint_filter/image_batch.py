"""Batches of images of different sizes.

B batch, H height, W width, C channels. Images are padded to the largest size in the batch and cropped back to their own
size before they reach the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from train.data.images.pairs import Pair
from train.tasks.task import Batch


class Images(NamedTuple):
    """One image of a batch, cropped to its own size: (1, C, H, W) each."""

    guidance: Tensor
    input: Tensor
    truth: Tensor
    valid: Tensor  # bool, (1, 1, H, W)


def images_of(batch: Batch) -> Iterator[Images]:
    """Yield the images of a batch one by one, without padding."""
    for n, (height, width) in enumerate(batch["size"].tolist()):
        parts = (batch[key][n : n + 1, :, :height, :width] for key in Images._fields)
        yield Images(*parts)


def as_batch(samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """Stack samples into tensors, each image padded with zeros to the largest height and width.

    Args:
        samples: `guidance`, `input`, `truth` (H, W, C) float32 and `valid` (H, W) bool; other entries are
            stacked unchanged.
    """
    sizes = np.array([sample["valid"].shape for sample in samples])
    height, width = sizes.max(axis=0)
    batch: Batch = {"size": torch.from_numpy(sizes.astype(np.int64))}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if key in Images._fields:
            values = [_planes(value, height, width) for value in values]
        batch[key] = torch.from_numpy(np.stack(values))
    return batch


def _planes(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (H, W) or (H, W, C) as (C, height, width)."""
    image = image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)
    rows, columns = height - image.shape[1], width - image.shape[2]
    return np.ascontiguousarray(np.pad(image, ((0, 0), (0, rows), (0, columns))))


def as_planes(image: np.ndarray) -> Tensor:
    """Return an image (H, W) or (H, W, C) as a tensor (1, C, H, W)."""
    return torch.from_numpy(_planes(image, *image.shape[:2]))[None]


def with_input(pair: Pair, image: np.ndarray) -> Pair:
    """Return a pair with the network's input appended to the target, so that both are cropped and flipped together."""
    return pair._replace(target=np.concatenate([pair.target, image], axis=2))


def training_sample(pair: Pair) -> dict[str, np.ndarray]:
    """Return the sample of a pair from `with_input`, with truth and input separated again."""
    truth, image = np.split(pair.target, 2, axis=2)
    return {"guidance": pair.guidance, "input": image, "truth": truth, "valid": pair.valid}
