"""Peak of the tensors that are alive between operations, on any device: it leaves out an operation's own workspace."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Follows the storages that operations create, by weak references, and keeps the most bytes that ever lived."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._references: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        read = {id(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and id(result.untyped_storage()) not in read:
                self._follow(result)
        self.peak = max(self.peak, self.now)
        return results

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._references:
            return
        self.now += size
        self._references[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        del self._references[key]
        self.now -= size
