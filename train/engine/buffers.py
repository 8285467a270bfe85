"""Buffers that forward passes update, such as batch norm's running statistics, kept equal on all ranks.

DeepSpeed neither broadcasts nor averages buffers. Here they are averaged over ranks after every step. An average of
moving averages is the moving average of averages, so averaging at every step changes nothing but rounding, and the
model can be evaluated or saved at any time. Modules that stay in eval mode during training, such as a frozen backbone,
update nothing: their buffers are left as they are, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.ranks.distributed import number_of_ranks, sum_over_ranks


class RunningStatistics:
    """A module's persistent buffers, as saved in checkpoints.

    Args:
        module: The module, whose buffers are initially equal on all ranks.
    """

    def __init__(self, module: nn.Module) -> None:
        saved = module.state_dict(keep_vars=True).keys()
        self._module = module
        self._live = {name: buffer for name, buffer in module.named_buffers() if name in saved}
        self._settled = self._copies()

    @torch.no_grad()
    def settle(self, *, applied: bool) -> None:
        """Average the buffers updated by this step over ranks; roll them back if the step was skipped."""
        if not self._live:
            return
        if not applied:
            self.restore(self._settled)
            return
        moving = [buffer for buffer in self._moving().values() if buffer.is_floating_point()]
        if number_of_ranks() > 1 and moving:
            means = sum_over_ranks(torch.cat([buffer.flatten() for buffer in moving])) / number_of_ranks()
            for buffer, mean in zip(moving, means.split([buffer.numel() for buffer in moving]), strict=True):
                buffer.copy_(mean.view_as(buffer))
        self._settled = self._copies()

    def state(self) -> dict[str, Tensor]:
        """Return the buffers by name."""
        return dict(self._live)

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the buffers by name."""
        for name, value in values.items():
            self._live[name].copy_(value)
        self._settled = self._copies()

    def _moving(self) -> dict[str, Tensor]:
        """Return the buffers of modules in training mode, the only ones that a step can update."""
        owners = {name for name, module in self._module.named_modules() if module.training}
        return {name: buffer for name, buffer in self._live.items() if name.rpartition(".")[0] in owners}

    def _copies(self) -> dict[str, Tensor]:
        return {name: buffer.detach().clone() for name, buffer in self._moving().items()}
