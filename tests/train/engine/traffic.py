"""Counts what an engine does beside the network's own products: bytes moved, and waits for the device."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result is a Python number or a decision: on a GPU the host waits for everything before them.
WAITS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select")
_ONLY_WRITE = ("copy_", "zero_", "fill_")  # of their first tensor
_WRITE_NOTHING = ("empty", "new_empty", "empty_like", "empty_strided")


class Traffic(TorchDispatchMode):
    """Inside it, counts the bytes that operations other than products read and write, and the waits.

    Args:
        at_least: Elements from which a tensor counts: below, it is an activation or a scalar.
    """

    def __init__(self, *, at_least: int = 1) -> None:
        super().__init__()
        self._at_least = at_least
        self.bytes: Counter[str] = Counter()  # by operation
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).rpartition(".")[0]
        if name in WAITS:
            self.waits[name] += 1
        moved = 0 if func.is_view or name.endswith("mm") else self._moved(name, (args, kwargs), result)
        if moved:
            self.bytes[name] += moved
        return result

    def _moved(self, name: str, arguments: Any, result: Any) -> int:
        kind = name.rpartition(".")[2].removeprefix("_foreach_")
        if kind in _WRITE_NOTHING or kind == "detach":
            return 0
        read, written = self._large(arguments), self._large(result)
        if "foreach" in name and not written:  # in place, and returns nothing
            written = read
        if kind in _ONLY_WRITE:
            read = read[len(written) :]
        return sum(tensor.numel() * tensor.element_size() for tensor in read + written)

    def _large(self, values: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.numel() >= self._at_least]
