"""`python -m train.ranks.torchrun ...`: torchrun, which takes the same words and ends as its ranks do.

torchrun turns every exit code of a rank into 1, with a traceback of its own: after a run that stopped early with a
checkpoint (75) and after one that refused what it was given (2), too. launch/ starts this program in its place.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError

from train.config.facts.exit_codes import REFUSED, STOPPED_EARLY
from train.ranks.launcher_env import USERS_THREADS

_BY_SIGNAL = 128  # exit codes above it: ended from outside, by the signal of this number more


def main() -> int:
    """Run the ranks of this node to their end; returns the exit code of the one that ended first."""
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_news)
    if "OMP_NUM_THREADS" in os.environ:
        os.environ.setdefault(USERS_THREADS, os.environ["OMP_NUM_THREADS"])
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or torchrun sets it and announces that; the ranks choose their own
    try:
        torchrun.run(torchrun.parse_args(None))
    except ChildFailedError as error:
        return _ended(error.failures)
    except SignalException as error:
        _say(f"{error.sigval.name} has ended the ranks on {socket.gethostname()}")
        return _BY_SIGNAL + error.sigval
    except RendezvousError as error:
        _say(f"{socket.gethostname()} has lost the other nodes: {error}")
        return _BY_SIGNAL + signal.SIGTERM
    return 0


def _ended(failures: Mapping[int, ProcessFailure]) -> int:
    """Say what the ranks have not said themselves; returns the exit code of the one that ended first.

    They are in the order in which torchrun found them. It would take the one with the earliest time, in whole seconds,
    and may blame a rank that it has ended itself.
    """
    rank, first = next(iter(failures.items()))
    if first.exitcode == REFUSED:
        rank_0 = failures.get(0)
        if rank_0 is None or rank_0.exitcode != REFUSED:  # it was ended before it could say why, or is elsewhere
            _say(_told(first))
    elif first.exitcode != STOPPED_EARLY:
        _say(f"rank {rank} on {socket.gethostname()} ended first, {_how(first)}; the others were ended with it")
    return first.exitcode if first.exitcode > 0 else 1


def _told(failure: ProcessFailure) -> str:
    """Return what a rank left for torchrun to read; else torchrun's own words."""
    message: Any = failure.message  # a dict in the first case, whatever its annotation says
    return message["message"] if isinstance(message, dict) else message


def _how(failure: ProcessFailure) -> str:
    if failure.exitcode == -signal.SIGKILL:
        return "killed by SIGKILL: from outside, or for want of memory"
    return f"killed by {failure.signal_name()}" if failure.exitcode < 0 else f"with exit code {failure.exitcode}"


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether torchrun says more than that a rank ended, or is ended for it."""
    return not str(record.msg).startswith(("failed (exitcode", "Sending process"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
