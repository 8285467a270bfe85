"""From images to the features that are classified: scaling, backbone, and new layers.

Shapes: B batch, D channels, H height, W width of the image.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .dropout_bap import SampleDropout
from .facts_bap import BACKBONE_CHANNELS, NetworkShape, Scaling
from .lite0_bap import Lite0
from .vgg16_bap import VGG16


class Scale(nn.Module):
    """Images from 0 to 1 in red, green, blue, to what the pretrained weights expect."""

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        self.scaling = scaling

    def forward(self, images: Tensor) -> Tensor:
        """Scale (B, 3, H, W)."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.scaling.mean, self.scaling.std))
        images = images.flip(1) if self.scaling.reversed else images
        return (images * self.scaling.range - mean) / std


class Neck(nn.Module):
    """Two new layers on Lite0's features, with one depthwise convolution between them."""

    def __init__(self, before: int, width: int, dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(before, width, 1)
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Conv2d(width, width, 1)
        self.dropout = SampleDropout(dropout, number=0)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Map (B, before, h, w) to (B, width, h, w)."""
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)  # channels of three stages, on one scale
        x = F.relu(self.around(self.reduce(x)))
        return self.dropout(F.relu(self.mix(x)), keys)


class Trunk(nn.Module):
    """Images (B, 3, H, W) from 0 to 1, to features (B, D, ceil(H / 8), ceil(W / 8))."""

    def __init__(self, shape: NetworkShape, *, dilation: int) -> None:
        super().__init__()
        self.frozen = False
        self.scale = Scale(shape.scaling)
        if shape.backbone == "vgg16":
            self.backbone, self.neck = VGG16(dilation=dilation, dropout=shape.dropout), None
        else:
            self.backbone = Lite0()
            self.neck = Neck(BACKBONE_CHANNELS["lite0"], shape.width, shape.dropout)

    @property
    def pretrained(self) -> nn.Module:
        """The layers that weights trained on images of single objects exist for."""
        return self.backbone.blocks if isinstance(self.backbone, VGG16) else self.backbone

    def freeze(self) -> None:
        """Turn the pretrained layers into constants: their weights become buffers, under the same names."""
        for module in self.pretrained.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
        self.frozen = True
        self.train(self.training)

    def learn_statistics(self) -> None:
        """Let batch norms learn their statistics, for a backbone without pretrained weights."""
        if isinstance(self.backbone, Lite0):
            self.backbone.learns_statistics = True
            self.train(self.training)

    def train(self, mode: bool = True) -> Trunk:
        """Set the mode of everything but frozen layers."""
        super().train(mode)
        if self.frozen:
            self.pretrained.eval()
        return self

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Return the features; `keys` (B,) choose the samples' dropout masks."""
        features = self.backbone(self.scale(images), keys)
        return features if self.neck is None else self.neck(features, keys)
