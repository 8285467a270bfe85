"""Loader for the weights published by the authors of DKN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .facts_dkn import CELL, STAGES, FilterShape
from .modeling_dkn import DKNModel

_BRANCHES = {"guidance_branch": "ImageKernel", "target_branch": "DepthKernel"}
_HEADS = {"weight_head": "conv_weight", "offset_head": "conv_offset"}
_MOST_NAMES = 3  # in a message
_COUNTER = "num_batches_tracked"  # older versions of torch did not save it


def load_authors_weights(model: DKNModel, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a state dict with the authors' names (ImageKernel.conv1.weight and so on) into a model.

    Their networks were trained on blue, green, red and with their own sampling. The first guidance layer of DKN is
    turned to red, green, blue here; FDKN sees only the luma, whose weights `kernels_dkn` has in that order.

    Args:
        model: Of the same architecture, with sampling `compat`.
        state_dict: Theirs; the names may begin with `module.`, and the counters of BatchNorm may be missing.

    Raises:
        ValueError: Tensors are missing, too many or of another shape, or the model samples otherwise.
    """
    if model.config.sampling != "compat":
        raise ValueError(
            f"sampling: these weights were trained with the authors' sampling, but the model's is "
            f"{model.config.sampling!r}; create it with DKNConfig(sampling='compat')"
        )
    theirs = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    own = model.state_dict()
    wanted = {authors_name(name): name for name in own}
    if faults := _faults(theirs, {name: own[ours] for name, ours in wanted.items()}):
        raise ValueError(f"the state dict does not fit this {model.config.architecture}:\n" + "\n".join(faults))
    loaded = {wanted[name]: tensor for name, tensor in theirs.items()}
    if model.config.architecture == "dkn" and model.config.guidance:
        first = "kernels.guidance_branch.stages.0.conv.weight"
        loaded[first] = loaded[first].flip(1)
    model.load_state_dict({**own, **loaded})


def shape_of_authors_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of DKNConfig that a state dict with the authors' names tells: all but residual and window_size.

    Raises:
        ValueError: It is not one of theirs.
    """
    theirs = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    first, head = (f"{_BRANCHES['target_branch']}.{module}.weight" for module in ("conv1", _HEADS["weight_head"]))
    if first not in theirs or head not in theirs:
        names = ", ".join(list(theirs)[:_MOST_NAMES]) + (", ..." if len(theirs) > _MOST_NAMES else "")
        raise ValueError(f"no weights of DKN or FDKN, which have {first} and {head}, but {names or 'nothing'}")
    last = len(STAGES["dkn"])  # FDKN has one stage less
    architecture = "dkn" if f"{_BRANCHES['target_branch']}.conv{last}.weight" in theirs else "fdkn"
    weights = len(theirs[head]) // (CELL**2 if architecture == "fdkn" else 1)  # of a kernel
    side = math.isqrt(weights)
    return {
        "architecture": architecture,
        "kernel_size": side if side**2 == weights and side % 2 else FilterShape.kernel_size,
        "sampling": "compat",
        "guidance": any(name.startswith(f"{_BRANCHES['guidance_branch']}.") for name in theirs),
    }


def authors_name(name: str) -> str:
    """Return what the authors call a tensor of a DKNModel: `conv1_bn.weight` for `stages.0.norm.weight`."""
    _, branch, module, *rest = name.split(".")
    if module in _HEADS:
        return ".".join([_BRANCHES[branch], _HEADS[module], *rest])
    number, kind, leaf = rest
    suffix = "_bn" if kind == "norm" else ""
    return f"{_BRANCHES[branch]}.conv{int(number) + 1}{suffix}.{leaf}"


def _faults(theirs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors that are missing, unexpected, or of the wrong shape."""
    missing = [name for name in wanted if name not in theirs and not name.endswith(_COUNTER)]
    surplus = [name for name in theirs if name not in wanted]
    faults = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("too many", surplus)) if names]
    return faults + [
        f"{name}: {tuple(tensor.shape)} given, {tuple(wanted[name].shape)} wanted"
        for name, tensor in theirs.items()
        if name in wanted and torch.Size(tensor.shape) != wanted[name].shape
    ]
