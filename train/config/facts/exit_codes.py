"""Exit codes that a scheduler may act on: of `python -m train`, `launch local` and the SLURM scripts.

0 is done, 1 anything that went wrong while running.
"""

from __future__ import annotations

REFUSED = 2  # what the user gave is wrong; one message says what
STOPPED_EARLY = 75  # on a signal, with a checkpoint saved: run the same command again (EX_TEMPFAIL of sysexits.h)
