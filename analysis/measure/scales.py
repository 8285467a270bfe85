"""Effective scale of a norm per feature, whatever its stored weight means.

Gemma stores w and multiplies by 1 + w, so the scale is measured on the module rather than read from its weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def effective_scale(norm: nn.Module) -> Tensor:
    """Return the scale of an RMSNorm or LayerNorm, in its weight's shape, fp32.

    A vector v of alternating +1 and -1 has mean 0 and root mean square 1, so both norms give scale * v + bias (eps
    changes it by eps / 2), and (norm(v) - norm(-v)) / 2 * v is the scale. A vector of odd length has two equal
    neighbors' worth of mean, 1 / D, which is off by that much for LayerNorm. Where the module takes something else
    than one tensor, the stored weight is returned.
    """
    weight: Tensor = norm.weight  # type: ignore[assignment]
    signs = torch.ones(weight.shape)
    signs[..., 1::2] = -1.0
    device = weight.device if weight.device.type != "meta" else torch.device("cpu")
    for dtype in (torch.float32, weight.dtype):
        probe = signs.to(device=device, dtype=dtype)
        try:
            with torch.no_grad():
                both = torch.stack((norm(probe.unsqueeze(0))[0], norm(-probe.unsqueeze(0))[0])).float()
        except (RuntimeError, TypeError, ValueError):
            continue
        if both.shape[1:] == weight.shape:
            return (both[0] - both[1]) / 2 * signs.to(both.device)
    return weight.detach().float()
