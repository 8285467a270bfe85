"""`python -m train.torchrun ...`: torchrun, which takes the same words and ends as its ranks do.

torchrun turns every exit code of a rank into 1, with a traceback of its own: after a run that stopped early with a
checkpoint (75) and after one that refused what it was given (2), too. launch/ starts this program in its place.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

_SAID_ITSELF = (2, 75)  # exit codes of a rank that has told why


def main() -> int:
    """Run the ranks of this node to their end; returns the exit code of the one that ended first."""
    # It names each rank that ended, and each that is ended for it: once, below, is enough.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        torchrun.run(torchrun.parse_args(None))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode not in _SAID_ITSELF:
            print(_ended_first(rank, failure), file=sys.stderr, flush=True)
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException as error:
        print(f"{error.sigval.name} has ended the ranks on {socket.gethostname()}", file=sys.stderr, flush=True)
        return 1
    return 0


def _ended_first(rank: int, failure: ProcessFailure) -> str:
    """Say which rank took the others with it, and how it ended."""
    how = f"with exit code {failure.exitcode}"
    if failure.exitcode == -signal.SIGKILL:
        how = "killed by SIGKILL: from outside, or for want of memory"
    elif failure.exitcode < 0:
        how = f"killed by {failure.signal_name()}"
    return f"rank {rank} on {socket.gethostname()} ended first, {how}; the others were ended with it"


if __name__ == "__main__":
    sys.exit(main())
