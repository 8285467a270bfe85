"""Exit codes that schedulers can act on: from `python -m train`, `launch local` and the SLURM scripts.

0 means done; 1 is any failure at run time.
"""

from __future__ import annotations

REFUSED = 2  # invalid user input; one message lists every fault
STOPPED_EARLY = 75  # by a signal, with a checkpoint saved: run the same command again (EX_TEMPFAIL in sysexits.h)
