"""Run a function on several ranks: processes that live for the test session, joined over gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

RANK_TIMEOUT_SECONDS = 900  # a rank that takes longer hangs


def _join(rank: int, size: int, port: int) -> None:
    """Become one rank (runs in the child, once)."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch

    from train.ranks import distributed

    distributed.start(threads=1)
    torch.use_deterministic_algorithms(True)


class Ranks:
    """`ranks(size, function, *arguments)` calls a function on every rank and returns the results in order."""

    def __init__(self) -> None:
        self._pools: dict[int, list[ProcessPoolExecutor]] = {}

    def __call__(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if size not in self._pools:
            self._pools[size] = self._start(size)
        futures = [pool.submit(function, *arguments) for pool in self._pools[size]]
        try:
            return [future.result(timeout=RANK_TIMEOUT_SECONDS) for future in futures]
        except BaseException:
            self._kill(size)  # the other ranks may wait for the failed one forever
            raise

    def close(self) -> None:
        """End all ranks."""
        for size in list(self._pools):
            self._kill(size)

    def _start(self, size: int) -> list[ProcessPoolExecutor]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        return [
            ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_join, initargs=(rank, size, port))
            for rank in range(size)
        ]

    def _kill(self, size: int) -> None:
        for pool in self._pools.pop(size):
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)
