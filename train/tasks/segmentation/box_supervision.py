"""Common base of the two tasks of box-supervised segmentation: images, initial weights, parameter groups.

B batch, H height, W width, K boxes of an image (padded).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from modeling.segmentation.facts_bap import NetworkShape
from modeling.segmentation.facts_counts_bap import training_flops
from modeling.segmentation.modeling_bap import BoxClassifier, Segmenter
from modeling.segmentation.pretrained_bap import load_pretrained
from train.config.errors import ConfigError
from train.config.run import OptimConfig
from train.config.tasks.box_segmentation import (
    RANDOM_WEIGHTS,
    BoxClassificationConfig,
    SegmentationNetworkConfig,
    SemanticSegmentationConfig,
)
from train.data.annotated.augmentation import Augmentation, augmented
from train.data.annotated.images import Annotated
from train.data.drawn.draws import Draws
from train.data.split import Split
from train.tasks.segmentation.annotated_data import AnnotatedData
from train.tasks.segmentation.initial_weights import KEY, read_weights, weights_facts
from train.tasks.task import Batch, ParameterGroup, SampleCost

Config = TypeVar("Config", BoxClassificationConfig, SemanticSegmentationConfig)
Network = TypeVar("Network", BoxClassifier, Segmenter)

NETWORK_FIELDS = ("backbone", "normalization", "features", "dropout")  # that the exported configuration has too
_DROPOUT = 0xD6090  # random stream, separate from that of variations


class BoxSupervision(AnnotatedData, Generic[Config, Network]):
    """A task that trains a network of `modeling.segmentation` on annotated images."""

    def __init__(self, config: Config, *, optim: OptimConfig, seed: int, micro_batch_size: int) -> None:
        self.config: Config = config
        self._data = config.data
        self._optim = optim
        self._seed = seed
        self._micro_batch_size = micro_batch_size
        self._loaded: frozenset[str] = frozenset()  # names of pretrained tensors

    # ------------------------------------------------------------------------------------------------------- the data

    @property
    def data_facts(self) -> Mapping[str, Any]:
        """The numbers of images, the classes, and the initial weights."""
        return {**super().data_facts, "initial_weights": weights_facts(self.config.model.backbone_weights)}

    def check(self) -> list[str]:
        """Decode every image and mask, and look for the initial weights.

        Raises:
            ConfigError: Files are missing, damaged, or do not go together.
        """
        faults: list[str] = []
        for look in (super().check, self.build_model):
            try:
                look()
            except ConfigError as error:
                faults += error.faults
        if faults:
            raise ConfigError(faults)
        return []

    def batch(self, sample_ids: np.ndarray, *, split: Split, step: int) -> Batch:
        """Read images; all randomness in training is a function of (seed, step, id)."""
        if split == "validation":
            return self._collated([self._validation_sample(int(i)) for i in sample_ids])
        return self._collated([self._training_sample(int(i), step) for i in sample_ids])

    def _training_sample(self, index: int, step: int) -> dict[str, np.ndarray]:
        data = self.config.data
        how = Augmentation(data.crop, data.scale, data.flips, data.jitter)
        varied = augmented(self._labeled(index), how, seed=data.seed, step=step, sample_id=index)
        key = Draws(_DROPOUT, data.seed, step, index).key.view(np.int64)[0]
        return self._arrays(varied) | {"key": np.asarray(key)}

    def _validation_sample(self, index: int) -> dict[str, np.ndarray]:
        return self._arrays(self.validation.read(index)) | {"key": np.asarray(0)}

    def _labeled(self, index: int) -> Annotated:
        """Return a training image with the masks to learn from."""
        return self.training.read(index)

    @abstractmethod
    def _arrays(self, sample: Annotated) -> dict[str, np.ndarray]:
        """Return the arrays of a sample; the one called `image` is (H, W, 3)."""

    @abstractmethod
    def _collated(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """Stack samples, padded to the largest."""

    # ---------------------------------------------------------------------------------------------------- the network

    def build_model(self) -> Network:
        """Return the network: new layers from the run's seed, pretrained ones from their file."""
        model, given = self._drawn(), self.config.model.backbone_weights
        if given != RANDOM_WEIGHTS:
            try:
                loaded = load_pretrained(model.trunk.backbone, read_weights(given))
            except ValueError as error:
                faults = error.faults if isinstance(error, ConfigError) else [f"{KEY}: {given}: {error}"]
                raise ConfigError(faults) from None
            self._loaded = frozenset(f"trunk.backbone.{name}" for name in loaded)
        return self._prepared(model)

    def outline(self) -> Network:
        """Return the network without reading its initial weights."""
        return self._prepared(self._drawn())

    def model_to_load(self) -> Network:
        """Return the network without reading its initial weights."""
        return self.outline()

    def _drawn(self) -> Network:
        torch.manual_seed(self._seed)
        return self._network()

    @abstractmethod
    def _network(self) -> Network:
        """Return the network with random weights."""

    def _prepared(self, model: Network) -> Network:
        """Return a network with its pretrained layers as constants, if they are, or its batch norms set to learn."""
        if self.config.model.frozen_backbone:
            model.trunk.freeze()
        if self.config.model.backbone_weights == RANDOM_WEIGHTS:
            model.trunk.learn_statistics()
        return model

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Group parameters by rate factors (pretrained or new, bias or not) and weight decay, which weights have."""
        groups: dict[str, ParameterGroup] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                group = self._group_of(name, parameter)
                groups.setdefault(group.name, group).parameters[name] = parameter
        return list(groups.values())

    def _group_of(self, name: str, parameter: nn.Parameter) -> ParameterGroup:
        """Return the group of a parameter, without any parameter in it."""
        is_new, is_bias = name not in self._loaded, name.endswith(".bias")
        kind = "bias" if is_bias else "weight" if parameter.ndim > 1 else "norm"
        factor = (self.config.new_layers_lr_factor if is_new else 1.0) * (
            self.config.bias_lr_factor if is_bias else 1.0
        )
        decay = self._optim.weight_decay if kind == "weight" else 0.0
        return ParameterGroup(f"{'new' if is_new else 'pretrained'}_{kind}", {}, decay, factor)

    def _data_in_words(self) -> str:
        """Return the data and the initial weights for a model card."""
        data = self.config.data
        paths = ", ".join(dict.fromkeys(source.path for source in (*data.sources, *data.validation_sources)))
        return f"{paths}; classes {', '.join(self.classes)}"

    def _details(self) -> tuple[str, ...]:
        """Return the backbone for a model card, which has its initial weights from the run's records."""
        model = self.config.model
        if model.backbone_weights == RANDOM_WEIGHTS:
            return (f"backbone {model.backbone}, trained from random weights",)
        return (f"backbone {model.backbone}, pretrained{' and kept as it was' if model.frozen_backbone else ''}",)

    def describe(self, model: nn.Module) -> dict[str, str]:
        """Return the operations per image, and the image's size."""
        height, width = self._size
        return {"training FLOPs per image": f"{self._flops:,}  (convolutions, {height} x {width} pixels)"}

    def cost(self, model: nn.Module) -> SampleCost:
        """Return the operations per training image; of images of several sizes, the first one's."""
        return SampleCost(tokens=None, flops=float(self._flops))

    @property
    def _size(self) -> tuple[int, int]:
        crop = self.config.data.crop
        return (crop, crop) if crop is not None else self.training.size(0)

    @cached_property
    def _flops(self) -> int:
        model, (height, width) = self.config.model, self._size
        shape = NetworkShape(**network_fields(model))
        return training_flops(shape, frozen_backbone=model.frozen_backbone, height=height, width=width)


def network_fields(config: SegmentationNetworkConfig) -> dict[str, Any]:
    """Return the settings that both networks' own configurations have."""
    return {name: getattr(config, name) for name in NETWORK_FIELDS}


def padded(arrays: Sequence[np.ndarray], *, fill: int) -> Tensor:
    """Stack arrays, each padded along every axis to the largest."""
    shape = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
    stacked = np.full((len(arrays), *shape), fill, arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[tuple(slice(size) for size in array.shape)] = array
    return torch.from_numpy(stacked)
