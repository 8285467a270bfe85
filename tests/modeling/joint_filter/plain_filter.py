"""DKN and FDKN the plain way, to test against and to be faster than: unfolded windows, and sixteen shifted passes.

Shapes: B batch, C channels, H height, W width, K kernel size, S window size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.kernels_dkn import luma
from modeling.joint_filter.modeling_dkn import DKNModel


def random_filter(**fields: Any) -> DKNModel:
    """A filter in evaluation mode whose kernels depend on all that it sees, and whose offsets go some pixels far."""
    torch.manual_seed(0)
    model = DKNModel(DKNConfig(**fields)).eval()
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)  # torch's own would let the signal fade layer by layer
        elif "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model


def random_pair(height: int, width: int, *, batch: int = 1, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(batch, 3, height, width, generator=generator),
        torch.rand(batch, 1, height, width, generator=generator),
    )


def plain_sample_and_sum(target: Tensor, weights: Tensor, offsets: Tensor, config: DKNConfig) -> Tensor:
    """Cut an S x S window out for every pixel and let grid_sample read it."""
    batch, channels, height, width = target.shape
    size, middle, taps = config.window_size, config.window_size // 2, config.kernel_size**2
    windows = F.unfold(target, size, padding=middle)  # (B, C * S * S, H * W)
    windows = windows.view(batch, channels, size, size, -1).permute(0, 4, 1, 2, 3).flatten(0, 1)  # (B * H * W, C, S, S)
    steps = torch.arange(config.kernel_size, dtype=target.dtype, device=target.device)
    along = torch.cartesian_prod(steps, steps) + offsets.view(batch, taps, 2, height, width).permute(0, 3, 4, 1, 2)
    if config.sampling == "compat":
        grid = 2 * (along + middle) / size - 1  # (B, H, W, K * K, 2); what divides by S is read over S - 1
    else:
        grid = 2 * (along + middle - config.kernel_size // 2) / (size - 1) - 1
    samples = F.grid_sample(windows, grid.flatten(0, 2)[:, None], align_corners=True)  # (B * H * W, C, 1, K * K)
    summed = (samples[:, :, 0] * weights.permute(0, 2, 3, 1).flatten(0, 2)[:, None]).sum(dim=-1)
    return summed.view(batch, height, width, channels).permute(0, 3, 1, 2)


def strided(branch: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a branch of DKN as it is drawn: with strides."""
    for stage in branch.stages:
        x = F.conv2d(x, stage.conv.weight, stage.conv.bias, stride=2 if stage.splits else 1)
        x = (x if stage.norm is None else stage.norm(x)).relu()
    return branch.weight_head(x), branch.offset_head(x)


def products(branches: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    (weights, offsets), (other_weights, other_offsets) = branches
    return weights.sigmoid() * other_weights.sigmoid(), offsets * other_offsets


def sixteen_passes(model: DKNModel, guidance: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Shift the image sixteen times and stitch the results; height and width are multiples of 4."""
    batch, _, height, width = target.shape
    network: Any = model.kernels
    taps = model.config.kernel_size**2
    raw, offsets = target.new_empty(batch, taps, height, width), target.new_empty(batch, 2 * taps, height, width)
    for i in range(4):
        for j in range(4):
            padding = (25 - j, 22 + j, 25 - i, 22 + i)
            images = (network.guidance_branch, guidance), (network.target_branch, target)
            found = products(tuple(strided(branch, F.pad(image, padding)) for branch, image in images))
            raw[..., i::4, j::4], offsets[..., i::4, j::4] = found
    return raw, offsets


def on_cells(model: DKNModel, guidance: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """FDKN's network, layer by layer; height and width are multiples of 4."""
    network: Any = model.kernels
    found = []
    for branch, image in ((network.guidance_branch, luma(guidance)), (network.target_branch, target)):
        x = F.pixel_unshuffle(image, 4)
        for stage in branch.stages:
            x = stage.conv(x)
            x = (x if stage.norm is None else stage.norm(x)).relu()
        found.append((branch.weight_head(x), branch.offset_head(x)))
    raw, offsets = products(tuple(found))
    return F.pixel_shuffle(raw, 4), F.pixel_shuffle(offsets, 4)


def plain_forward(model: DKNModel, guidance: Tensor, target: Tensor) -> Tensor:
    """The whole filter, residual."""
    predict = on_cells if model.config.architecture == "fdkn" else sixteen_passes
    raw, offsets = predict(model, guidance, target)
    return target + plain_sample_and_sum(target, raw - raw.mean(dim=1, keepdim=True), offsets, model.config)
