"""The check of a run before it starts or is submitted: `python -m train ... --check` as a process of its own.

Data, tokenizer, shapes and starting weights need torch, which launch does not import.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from train.config.errors import ConfigError
from train.config.facts.exit_codes import REFUSED


class CheckFailedError(RuntimeError):
    """The check itself failed."""


def check(arguments: Sequence[str], *, python: str = sys.executable) -> None:
    """Check configuration, data, tokenizer, shapes and folders of a run.

    Args:
        arguments: Configuration and overrides, as for `python -m train`.
        python: The Python that has torch.

    Raises:
        ConfigError: The check reports faults.
        CheckFailedError: The check itself fails.
    """
    command = [python, "-m", "train", *arguments, "--check"]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=sys.stderr, text=True, check=False)
    if done.returncode == REFUSED:
        raise ConfigError(done.stderr.strip().splitlines())
    if done.returncode != 0:
        raise CheckFailedError(f"python -m train --check failed:\n{done.stderr.strip()}")
