"""Python's garbage collection, at steps of our choosing.

Left alone, it runs whenever some number of objects has been made, at a different step on every rank; a full collection
over all that torch, transformers and deepspeed have made takes 0.2 s, for which all other ranks wait.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

COLLECT_EVERY = 100  # steps


@contextmanager
def no_automatic_collection() -> Iterator[None]:
    """Inside, collect only when told to, and never look at what exists already."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def collect_when_due(step: int) -> None:
    """Collect garbage after every COLLECT_EVERY-th step, on all ranks after the same one."""
    if step % COLLECT_EVERY == 0:
        gc.collect()
