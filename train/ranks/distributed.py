"""Process group of a rank: start-up, teardown, device, threads, collectives and per-rank logging."""

from __future__ import annotations

import datetime
import logging
import os
import socket
import sys
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from train.ranks import launcher_env

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """Position of this process: `rank` of `size`, `local_rank` of `local_size` on this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes logs."""
        return self.rank == 0


def world_size_from_environment() -> int:
    """Return the world size set by the launcher (torchrun, accelerate; srun via `launcher_env`); 1 without one.

    Only RANK and WORLD_SIZE are considered: `accelerate launch` sets MASTER_ADDR even for a single process.
    """
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1


def start(*, threads: int | None = None, timeout: datetime.timedelta = datetime.timedelta(minutes=30)) -> World:
    """Join the process group (gloo for CPU tensors, NCCL for GPU tensors), once, and set device and threads.

    Args:
        timeout: Timeout of collectives in every group, including those that DeepSpeed creates without setting one.
        threads: CPU threads of this rank; None for OMP_NUM_THREADS, else an equal share of the available cores.
    """
    _announce_single_process()
    joined = dist.is_initialized()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1" if size == 1 else str(size)))
    device = _device(local_rank)
    world = World(rank=rank, size=size, local_rank=local_rank, local_size=local_size, device=device)
    if joined:
        return world
    seen = len(os.sched_getaffinity(0))
    torch.set_num_threads(launcher_env.threads_of_rank(os.environ, threads=threads, seen=seen, local_size=local_size))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for default in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(dist.distributed_c10d, default, timeout)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return world


def _device(local_rank: int) -> torch.device:
    """Return this rank's GPU, or the CPU; `srun --gpus-per-task=1` shows each rank only its own GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", 0 if torch.cuda.device_count() == 1 else local_rank)


def stop() -> None:
    """Leave the process group, if this process has joined one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _announce_single_process() -> None:
    """Set the environment variables of a single-rank world if no launcher did; else DeepSpeed would look for MPI."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def number_of_ranks() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks in place, and return it."""
    if number_of_ranks() > 1:
        dist.all_reduce(values)
    return values


def gather_over_ranks(values: Tensor) -> list[Tensor]:
    """Return every rank's tensor, ordered by rank, on every rank; all must have the same shape."""
    gathered = values.new_zeros(dist.get_world_size(), *values.shape)
    gathered[dist.get_rank()] = values
    return list(sum_over_ranks(gathered))


def gather_floats(value: float) -> list[float]:
    """Return every rank's value, ordered by rank, on every rank."""
    return [float(other) for other in gather_over_ranks(torch.tensor(value, dtype=torch.float64))]


def gather_hosts() -> list[str]:
    """Return the host name of every rank, ordered by rank, on every rank."""
    name = socket.gethostname().encode()[:64]
    mine = torch.tensor(list(name.ljust(64, b"\0")), dtype=torch.int64)
    return [bytes(other.tolist()).rstrip(b"\0").decode() for other in gather_over_ranks(mine)]


def all_agree(ok: bool) -> bool:
    """Return whether `ok` is true on every rank; also acts as a barrier."""
    return all(vote == 1.0 for vote in gather_floats(1.0 if ok else 0.0))


class SideChannel:
    """A separate CPU process group, for small messages alongside the collectives of the main thread.

    All ranks must create their channels in the same order, and only one thread may use a channel at a time.
    """

    def __init__(self) -> None:
        alone = dist.get_world_size() == 1
        self._group = None if alone else dist.new_group(backend="gloo")

    def largest(self, value: int) -> int:
        """Return the largest of all ranks' values."""
        if self._group is None:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._group)
        return int(values)

    def all_agree(self, ok: bool) -> bool:
        """Return whether `ok` is true on every rank."""
        return self.largest(int(not ok)) == 0


class _RankFilter(logging.Filter):
    """Rank 0 logs INFO and above; other ranks log WARNING and above, prefixed with their rank."""

    def __init__(self, rank: int, size: int):
        super().__init__()
        self.rank, self.size = rank, size

    def filter(self, record: logging.LogRecord) -> bool:
        record.where = f"[rank {self.rank}] " if self.size > 1 and (self.rank or record.levelno > logging.INFO) else ""
        return self.rank == 0 or record.levelno >= logging.WARNING


def set_up_logging() -> None:
    """Send our own loggers to standard error by rank, and silence third-party warnings that users cannot act on."""
    rank, size = int(os.environ.get("RANK", "0")), world_size_from_environment()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RankFilter(rank, size))
    handler.setFormatter(logging.Formatter("%(where)s%(message)s"))
    for package in ("train", "modeling", "analysis"):
        package_logger = logging.getLogger(package)
        package_logger.handlers = [handler]
        package_logger.setLevel(logging.INFO)
        package_logger.propagate = False
    # DeepSpeed calls collectives that torch is renaming, which users cannot change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
