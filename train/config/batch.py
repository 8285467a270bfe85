"""How ranks share a global batch."""

from __future__ import annotations

from train.config.errors import ConfigError
from train.config.run import RunConfig


def check_world_size(config: RunConfig, world_size: int) -> None:
    """Refuse a number of ranks that does not divide the global batch.

    Raises:
        ConfigError: Naming the nearest numbers that do.
    """
    batch = config.global_batch_size
    if batch % world_size == 0:
        return
    fitting = [ranks for ranks in range(1, batch + 1) if batch % ranks == 0]
    near = [max(n for n in fitting if n < world_size), *[n for n in fitting if n > world_size][:1]]
    raise ConfigError(
        [
            f"global_batch_size: {batch} samples cannot be shared evenly by {world_size} ranks; "
            f"start {' or '.join(map(str, near))} ranks, or change global_batch_size"
        ]
    )


def micro_batches(config: RunConfig, world_size: int) -> tuple[int, int]:
    """Return the samples of one pass and the passes of one optimizer step, on each rank.

    The first is the largest divisor of a rank's share of the global batch that is not above `micro_batch_size`.

    Raises:
        ConfigError: As `check_world_size`.
    """
    check_world_size(config, world_size)
    share = config.global_batch_size // world_size
    size = largest_divisor(share, limit=config.micro_batch_size)
    return size, share // size


def largest_divisor(number: int, *, limit: int) -> int:
    """Return the largest divisor of `number` that is not above `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)
