"""`python -m tests.gpu.stages NAME SECONDS OPTIONS`: one stage, as a child of `python -m tests.gpu`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time

from tests.gpu.bench import Bench, Options
from tests.gpu.report import FAILED
from tests.gpu.stage import kill_session


def main(arguments: list[str]) -> int:
    """Run the stage; return 1 if one of its items failed."""
    name, seconds, options = arguments
    if os.getsid(0) == os.getpid():  # else the session is a terminal's
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    bench = Bench(name, Options(**json.loads(options)), seconds=float(seconds))
    importlib.import_module(f"tests.gpu.stages.{name}").run(bench)
    return int(any(item["state"] == FAILED for item in bench.report.items.values()))


def end_with(parent: int) -> None:
    """End this session when the script is gone, so that a kill of the script leaves nothing on the card."""
    while os.getppid() == parent:
        time.sleep(0.5)
    kill_session(os.getsid(0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
