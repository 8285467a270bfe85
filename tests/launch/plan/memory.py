"""Memory of a pass as torch has it: what it keeps for the backward pass, and its peak."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def kept_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Return the bytes that a forward pass saves, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(kept.values())


def peak_bytes(loss: Callable[[], Tensor]) -> int:
    """Return the most bytes that a forward and backward pass has at a time, once gradients exist."""
    loss().backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss().backward()
    assert recorded.profiler is not None
    results = recorded.profiler.kineto_results
    assert results is not None
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")  # type: ignore[attr-defined]
    now = highest = 0
    for _, change in events:
        now += change
        highest = max(highest, now)
    return highest
