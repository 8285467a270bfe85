"""State dicts with the authors' names become models of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modeling.joint_filter.authors_weights import load_authors_weights
from modeling.joint_filter.modeling_dkn import DKNModel

from .plain_filter import random_filter, random_pair

ARCHITECTURES = pytest.mark.parametrize("architecture", ["fdkn", "dkn"])
FIRST = "ImageKernel.conv1.weight"


def authors_state_dict(model: DKNModel) -> dict[str, Tensor]:
    """What the authors would call a model's tensors, written out by hand; DKN's guidance is blue, green, red there."""
    found, network = {}, model.kernels
    branches: Any = (("ImageKernel", network.guidance_branch), ("DepthKernel", network.target_branch))
    for theirs, branch in branches:
        for number, stage in enumerate(branch.stages, 1):
            found |= {f"{theirs}.conv{number}.{k}": v for k, v in stage.conv.state_dict().items()}
            if stage.norm is not None:
                found |= {f"{theirs}.conv{number}_bn.{k}": v for k, v in stage.norm.state_dict().items()}
        found |= {f"{theirs}.conv_weight.{k}": v for k, v in branch.weight_head.state_dict().items()}
        found |= {f"{theirs}.conv_offset.{k}": v for k, v in branch.offset_head.state_dict().items()}
    if model.config.architecture == "dkn":
        found[FIRST] = found[FIRST].flip(1)
    return {name: tensor.clone() for name, tensor in found.items()}


@ARCHITECTURES
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("counters", [True, False])
def test_a_state_dict_of_theirs_filters_as_ours(architecture: str, prefix: str, counters: bool) -> None:
    model = random_filter(architecture=architecture, sampling="compat")
    theirs = authors_state_dict(model)
    assert "DepthKernel.conv5_bn.running_var" in theirs
    assert ("ImageKernel.conv7.bias" in theirs) == (architecture == "dkn")
    assert len(theirs) == {"fdkn": 62, "dkn": 66}[architecture]  # 62: what the published FDKN has
    given = {prefix + name: x for name, x in theirs.items() if counters or "num_batches" not in name}
    fresh = DKNModel(model.config).eval()
    load_authors_weights(fresh, given)
    pair = random_pair(12, 16)
    with torch.no_grad():
        assert (fresh(*pair).output == model(*pair).output).all()


def test_every_fault_of_a_state_dict_is_told() -> None:
    model = random_filter(sampling="compat")
    theirs = authors_state_dict(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del theirs["DepthKernel.conv2.bias"]
    theirs["DepthKernel.conv7.bias"] = torch.zeros(128)
    theirs[FIRST] = torch.zeros(32, 3, 7, 7)
    with pytest.raises(ValueError, match="the state dict does not fit this fdkn") as caught:
        load_authors_weights(model, theirs)
    assert str(caught.value).splitlines()[1:] == [
        "missing: DepthKernel.conv2.bias",
        "too many: DepthKernel.conv7.bias",
        "ImageKernel.conv1.weight: (32, 3, 7, 7) given, (32, 16, 3, 3) wanted",
    ]
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())


def test_their_weights_want_their_sampling() -> None:
    model = random_filter()
    with pytest.raises(ValueError, match="DKNConfig\\(sampling='compat'\\)"):
        load_authors_weights(model, authors_state_dict(model))
