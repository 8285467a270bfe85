"""A view of annotated images: how many, their sizes and classes, and the images of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from train.config.tasks.box_segmentation import AnnotatedDataConfig
from train.config.tasks.score_upsampling import ScoreDataConfig
from train.data import summary
from train.data.annotated.collection import AnnotatedImages, open_annotated

_NAMES = 5  # that are listed


class AnnotatedView:
    """The annotated images of a run.

    Raises:
        ConfigError: Files are missing, damaged, or do not go together.
    """

    def __init__(self, config: AnnotatedDataConfig | ScoreDataConfig):
        self._splits = {
            split: open_annotated(sources, classes=config.classes, path=path)
            for split, sources, path in (
                ("training", config.sources, "task.data.sources"),
                ("validation", config.validation_sources, "task.data.validation_sources"),
            )
        }
        self._config = config
        self.num_training_samples = len(self._splits["training"])

    def overview(self) -> Iterator[str]:
        """Yield how many images there are, their sizes, first names, boxes by class, masks and fingerprint."""
        for split, images in self._splits.items():
            sizes = summary.sizes(Counter(images.size(i) for i in range(len(images))))
            yield f"{split} data: {summary.in_words({'images': len(images)})} of {sizes}"
            names = [images.name(i) for i in range(min(_NAMES, len(images)))]
            yield f"  {', '.join(names)}{', ...' if len(images) > len(names) else ''}"
            yield f"  boxes: {_boxes(images)}"
            masks = sum(images.has_mask(i) for i in range(len(images)))
            yield f"  masks of {'all' if masks == len(images) else f'{masks:,}'} images"
            yield f"  fingerprint {images.fingerprint}"

    def samples(self, ids: np.ndarray) -> Iterator[str]:
        """Yield name, size and boxes of each image."""
        images, config = self._splits["training"], self._config
        if config.crop is not None:
            scaled = "" if isinstance(config, ScoreDataConfig) else ", scaled by {:g} to {:g}".format(*config.scale)
            yield f"of each image{scaled}, {config.crop} pixels square"
        for index in map(int, ids):
            sample = images.read(index)
            height, width = sample.image.shape[:2]
            boxes = ", ".join(images.classes[number] for number in sample.classes) or "no boxes"
            yield f"  image {index}: {sample.name}, {height} x {width} pixels: {boxes}"


def _boxes(images: AnnotatedImages) -> str:
    """Return how many boxes each class has."""
    counts: Counter[str] = Counter()
    for index in range(len(images)):
        counts.update(images.classes[number] for number in images.read(index).classes)
    return ", ".join(f"{counts[name]:,} {name}" for name in images.classes[1:])
