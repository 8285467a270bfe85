"""Initial weights drawn by several cores at once.

torch draws random numbers on one core: 8 to 17 ns per weight, up to a minute for 3.4 billion. Here a large tensor is
drawn in blocks, each with a generator of its own, so that the numbers depend on the seed alone and not on the number of
threads. They differ from those that torch draws in one sequence, which is why runs on a CPU do not use this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_BLOCK = 2**20  # elements; smaller tensors are drawn as torch does
_DRAWS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
_SPREAD = 0x9E3779B1  # odd, so that different numbers of a block have different seeds modulo 2^32


@contextmanager
def drawn_in_parallel(threads: int) -> Iterator[None]:
    """Draw all large CPU tensors that are filled by `normal_` or `uniform_` inside by this many threads."""
    with ThreadPoolExecutor(threads, thread_name_prefix="draw") as pool, _ParallelDraws(pool):
        yield


class _ParallelDraws(TorchDispatchMode):
    """Sees what `torch.nn.init` and a tensor's own methods come down to."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        super().__init__()
        self._pool = pool

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _DRAWS or not _is_large(args[0]) or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        parameters = {key: value for key, value in kwargs.items() if key != "generator"}
        self._draw(args[0], lambda block, generator: func(block, *args[1:], generator=generator, **parameters))
        return args[0]

    def _draw(self, tensor: Tensor, fill: Callable[[Tensor, torch.Generator], Any]) -> None:
        """Fill a tensor block by block; the first seed is the next random number of torch's own generator."""
        first = int(torch.randint(2**32, ()))

        def draw(index: int, block: Tensor) -> None:
            fill(block, torch.Generator().manual_seed((first + index * _SPREAD) % 2**32))

        blocks = tensor.detach().view(-1).split(_BLOCK)
        list(self._pool.map(draw, range(len(blocks)), blocks))


def _is_large(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.numel() >= _BLOCK and tensor.is_contiguous()
