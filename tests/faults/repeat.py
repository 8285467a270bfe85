"""`python -m tests.faults.repeat export|report RUN OUT`: make the same folder over and over, OUT/0, OUT/1, ..."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from analysis.__main__ import main as analysis
from train.export.__main__ import main as export


def main(what: str, run: str, out: Path) -> None:
    """Never returns: the test kills this process."""
    out.mkdir()
    for number in itertools.count():
        folder = str(out / str(number))
        code = export([run, folder]) if what == "export" else analysis(["report", run, "--out", folder])
        assert code == 0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
