"""Division of the global batch among ranks."""

from __future__ import annotations

import math

from train.config.errors import ConfigError
from train.config.run import RunConfig


def check_world_size(config: RunConfig, world_size: int) -> None:
    """Reject a world size that does not divide the global batch.

    Raises:
        ConfigError: With the nearest world sizes that do.
    """
    batch = config.global_batch_size
    if batch % world_size == 0:
        return
    possible = divisors(batch)
    nearest = [max(n for n in possible if n < world_size), *[n for n in possible if n > world_size][:1]]
    raise ConfigError(
        [
            f"global_batch_size: {batch} samples cannot be divided evenly among {world_size} ranks; "
            f"start {' or '.join(map(str, nearest))} ranks, or change global_batch_size"
        ]
    )


def micro_batches(config: RunConfig, world_size: int) -> tuple[int, int]:
    """Return the micro-batch size and the number of micro-steps per optimizer step, on each rank.

    The micro-batch size is the largest divisor of a rank's share of the global batch up to `micro_batch_size`.

    Raises:
        ConfigError: See `check_world_size`.
    """
    check_world_size(config, world_size)
    share = config.global_batch_size // world_size
    size = largest_divisor(share, limit=config.micro_batch_size)
    return size, share // size


def largest_divisor(number: int, *, limit: int) -> int:
    """Return the largest divisor of `number` up to `limit`."""
    return max(divisor for divisor in divisors(number) if divisor <= limit)


def divisors(number: int) -> list[int]:
    """Return all divisors, ascending, in sqrt(number) steps."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
