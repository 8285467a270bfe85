"""Network of the tasks that train a joint image filter, whatever it filters."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from analysis.measure.activations import Site, sites_of_any
from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.image_processing_dkn import DKNImageProcessor
from modeling.joint_filter.modeling_dkn import DKNModel
from modeling.joint_filter.purpose_dkn import FilterPurpose
from train.config.run import OptimConfig
from train.config.tasks.joint_filter import FilterConfig
from train.tasks.task import ParameterGroup, Task


class FilterNetwork(Task):
    """What does not depend on the images: the network, its parameter groups, and where it is measured."""

    _filter: FilterConfig
    _optim: OptimConfig
    _seed: int

    def build_model(self) -> DKNModel:
        """Return the filter, initialized from the run's seed."""
        torch.manual_seed(self._seed)
        return DKNModel(DKNConfig(**asdict(self._filter), purpose=self._purpose().record()))

    @abstractmethod
    def _purpose(self) -> FilterPurpose:
        """Return what the filter is trained for, as an exported folder states it; the data need not exist."""

    def save_assets(self, folder: Path) -> None:
        """Save the image processor, with the training's scale and definition of missing pixels."""
        purpose = self._purpose()
        DKNImageProcessor(invalid=purpose.invalid, scale=purpose.scale).save_pretrained(folder)

    def describe(self, model: nn.Module) -> dict[str, str]:
        """Return the operations per pixel."""
        assert isinstance(model, DKNModel)
        return {"forward FLOPs per pixel": f"{model.flops_per_pixel():,.0f}"}

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Group parameters: convolution kernels have weight decay, norms and biases do not."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        kernels = {name: parameter for name, parameter in named.items() if parameter.ndim > 1}
        others = {name: parameter for name, parameter in named.items() if parameter.ndim <= 1}
        decay = self._optim.weight_decay
        return [ParameterGroup("matrix", kernels, decay), ParameterGroup("norm_or_bias", others, 0.0)]

    def probe_sites(self, model: nn.Module) -> list[Site]:
        """Return the outputs of every convolution and norm."""
        assert isinstance(model, DKNModel)
        return sites_of_any(model.kernels)
