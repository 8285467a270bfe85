"""Copies of device tensors in host memory, made through two small pinned buffers.

A copy to ordinary memory runs at a fraction of the bus's speed, since the driver stages it in small pieces and waits
for each. Pinning memory for a whole checkpoint would be slow itself and take it from the machine for good. With two
pinned buffers, one is filled by the device while the host empties the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_BUFFER_BYTES = 2**26


def copies_in_host_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of each tensor in host memory, complete when this returns."""
    on_device = {key: tensor for key, tensor in tensors.items() if tensor.is_cuda}
    copies = {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items() if key not in on_device}
    if on_device:
        buffers = [torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        copies |= copies_through(buffers, on_device)
    return {key: copies[key] for key in tensors}


def copies_through(buffers: list[Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in ordinary host memory of tensors of one device.

    Args:
        buffers: Host memory, (n,) uint8, n a multiple of 16; pinned where the device is a GPU.
        tensors: On one device.
    """
    copies = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, tensor in tensors.items()}
    pieces = _pieces(((tensors[key].detach(), copies[key]) for key in tensors), size=len(buffers[0]))
    on_the_way: _Arrival | None = None
    for index, (source, target) in enumerate(pieces):
        arriving = _Arrival.of(source, target, buffer=buffers[index % len(buffers)])
        if on_the_way is not None:
            on_the_way.unload()
        on_the_way = arriving
    if on_the_way is not None:
        on_the_way.unload()
    return copies


def _pieces(pairs: Iterable[tuple[Tensor, Tensor]], *, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut pairs of equal tensors into pairs of bytes, at most `size` each."""
    for source, target in pairs:
        as_bytes = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (source, target))
        yield from zip(*(whole.split(size) for whole in as_bytes if whole.numel()), strict=True)


class _Arrival(NamedTuple):
    """A piece that the device is copying to a buffer."""

    buffer: Tensor
    target: Tensor
    done: torch.cuda.Event | None

    @staticmethod
    def of(source: Tensor, target: Tensor, *, buffer: Tensor) -> _Arrival:
        """Start the copy; the host does not wait for it."""
        buffer = buffer[: len(source)].copy_(source, non_blocking=True)
        done = None
        if source.is_cuda:
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(source.device))
        return _Arrival(buffer, target, done)

    def unload(self) -> None:
        """Wait for the piece and move it to where it belongs."""
        if self.done is not None:
            self.done.synchronize()
        self.target.copy_(self.buffer)
