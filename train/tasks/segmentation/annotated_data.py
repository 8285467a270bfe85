"""Data of the tasks that read annotated images: both splits, their classes, and what is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from train.config.errors import ConfigError
from train.config.tasks.box_segmentation import AnnotatedDataConfig
from train.config.tasks.score_upsampling import ScoreDataConfig
from train.data.annotated.collection import AnnotatedImages, open_annotated
from train.data.split import Split
from train.tasks.task import Task

SECTIONS: dict[Split, str] = {"training": "task.data.sources", "validation": "task.data.validation_sources"}


class AnnotatedData(Task):
    """A task that reads annotated images."""

    _data: AnnotatedDataConfig | ScoreDataConfig
    _micro_batch_size: int

    @cached_property
    def training(self) -> AnnotatedImages:
        """The training images."""
        return self._opened("training")

    @cached_property
    def validation(self) -> AnnotatedImages:
        """The validation images."""
        return self._opened("validation")

    def _opened(self, split: Split) -> AnnotatedImages:
        data = self._data
        sources = data.sources if split == "training" else data.validation_sources
        return open_annotated(sources, classes=data.classes, path=SECTIONS[split])

    @property
    def classes(self) -> list[str]:
        """Names of the object classes; opens the training images unless the configuration lists them."""
        listed = self._data.classes
        return list(listed) if listed is not None else self.training.classes[1:]

    @property
    def num_training_samples(self) -> int:
        """Number of training images."""
        return len(self.training)

    @property
    def num_validation_samples(self) -> int:
        """Number of validation images."""
        return len(self.validation)

    @property
    def data_fingerprint(self) -> str:
        """A hash of everything that is read."""
        parts = " ".join(self._fingerprints())
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def _fingerprints(self) -> Iterator[str]:
        yield self.training.fingerprint
        yield self.validation.fingerprint

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """The numbers of images, and the classes."""
        return {
            "training_images": len(self.training),
            "validation_images": len(self.validation),
            "classes": self.classes,
        }

    def check(self) -> list[str]:
        """Decode every image and mask.

        Raises:
            ConfigError: Files are missing, damaged, or do not go together.
        """
        faults = [fault for split in SECTIONS for fault in self._faults(split, decode=True)]
        if faults:
            raise ConfigError(list(dict.fromkeys(faults)))
        return []

    def open_data(self) -> None:
        """Open both splits and check that their files go together."""
        faults = [fault for split in SECTIONS for fault in self._faults(split, decode=False)]
        if faults:
            raise ConfigError(faults)
        _ = self.data_fingerprint

    def open_validation(self) -> None:
        """Open and check the validation images; the training images need not exist."""
        if faults := self._faults("validation", decode=False):
            raise ConfigError(faults)

    def _faults(self, split: Split, *, decode: bool) -> list[str]:
        try:
            images: AnnotatedImages = getattr(self, split)
        except ConfigError as error:
            return error.faults
        return [*images.faults(decode=decode), *self._split_faults(split, images)]

    def _split_faults(self, split: Split, images: AnnotatedImages) -> Iterator[str]:
        """Yield what keeps the task from using images whose files are sound."""
        expected = ["background", *self.classes] if split == "validation" else images.classes
        if images.classes != expected:
            ours, theirs = (", ".join(names[1:]) for names in (expected, images.classes))
            yield f"{SECTIONS[split]}: the classes are {theirs}, in training {ours}; list them in task.data.classes"
        if split == "training" and self._data.crop is None and self._micro_batch_size > 1:
            sizes = {images.size(i) for i in range(len(images))}
            if len(sizes) > 1:
                yield (
                    f"micro_batch_size: {self._micro_batch_size} images of different sizes cannot form a batch; write "
                    f"1, or set task.data.crop"
                )
