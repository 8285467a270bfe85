"""Division of the global batch among ranks."""

from __future__ import annotations

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
    divisors = [ranks for ranks in range(1, batch + 1) if batch % ranks == 0]
    nearest = [max(n for n in divisors if n < world_size), *[n for n in divisors if n > world_size][:1]]
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
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)
