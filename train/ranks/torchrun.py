"""Drop-in torchrun that preserves exit codes: `python -m train.ranks.torchrun ...`, with torchrun's arguments.

torchrun turns any nonzero exit code of a rank into 1 and prints a traceback of its own, even if the run stopped early
with a checkpoint (75) or rejected its configuration (2). launch/ uses this program instead.
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

_BY_SIGNAL = 128  # added to the signal number in exit codes of processes that a signal ended


def main() -> int:
    """Run the ranks of this node and return the exit code of the one that ended first."""
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_informative)
    if "OMP_NUM_THREADS" in os.environ:
        os.environ.setdefault(USERS_THREADS, os.environ["OMP_NUM_THREADS"])
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else torchrun sets it with a warning; the ranks choose their own
    try:
        torchrun.run(torchrun.parse_args(None))
    except ChildFailedError as error:
        return _report_failures(error.failures)
    except SignalException as error:
        _print(f"{error.sigval.name} terminated the ranks on {socket.gethostname()}")
        return _BY_SIGNAL + error.sigval
    except RendezvousError as error:
        _print(f"{socket.gethostname()} lost contact with the other nodes: {error}")
        return _BY_SIGNAL + signal.SIGTERM
    return 0


def _report_failures(failures: Mapping[int, ProcessFailure]) -> int:
    """Print what the ranks could not print themselves; return the exit code of the one that ended first.

    Failures are in the order in which torchrun detected them. torchrun itself would choose the earliest timestamp, in
    whole seconds, and may blame a rank that it terminated itself.
    """
    rank, first = next(iter(failures.items()))
    if first.exitcode == REFUSED:
        rank_0 = failures.get(0)
        if rank_0 is None or rank_0.exitcode != REFUSED:  # it was terminated before it could print, or is elsewhere
            _print(_message(first))
    elif first.exitcode != STOPPED_EARLY:
        _print(f"rank {rank} on {socket.gethostname()} ended first, {_cause(first)}; the others were terminated")
    return first.exitcode if first.exitcode > 0 else 1


def _message(failure: ProcessFailure) -> str:
    """Return the message a rank left for torchrun, else torchrun's own."""
    message: Any = failure.message  # a dict in the first case, despite its annotation
    return message["message"] if isinstance(message, dict) else message


def _cause(failure: ProcessFailure) -> str:
    if failure.exitcode == -signal.SIGKILL:
        return "killed by SIGKILL: from outside, or because memory ran out"
    return f"killed by {failure.signal_name()}" if failure.exitcode < 0 else f"with exit code {failure.exitcode}"


def _is_informative(record: logging.LogRecord) -> bool:
    """Return whether a record says more than that a rank ended or is being terminated."""
    return not str(record.msg).startswith(("failed (exitcode", "Sending process"))


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
