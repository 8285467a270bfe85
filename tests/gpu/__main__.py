"""`python -m tests.gpu --out DIR [--seconds S] [--device cpu --tiny] [--only STAGE ...]`: all that needs a card.

Runs stages in order of worth, each within its bound, and writes DIR/STAGE.json and DIR/STAGE.log as it goes.
`python -m tests.gpu.table DIR` makes Markdown of them. Exit codes: 0 done, 1 something failed, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.gpu import report
from tests.gpu.bench import ROOT, Options
from tests.gpu.stage import NOMINAL_SECONDS, Outcome, Stage, run_stages
from tests.gpu.table import table

STAGES = (
    Stage("machine", seconds=40, least=10),
    Stage("correctness", seconds=130, least=60),
    Stage("speed", seconds=240, least=60),
    Stage("cost", seconds=70, least=50),
    Stage("filters", seconds=40, least=20),
    Stage("training", seconds=NOMINAL_SECONDS, least=50),  # whatever is left
)
DATA = ROOT / ".offline/data"
# No network is there to ask; NCCL and gloo would look for one.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "NCCL_SOCKET_IFNAME": "lo",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "PYTHONSAFEPATH": "1",  # runs start in the folder of the data, which holds no modules
    "PYTHONUNBUFFERED": "1",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the stages, print the tables, and return the exit code."""
    options = _parse(arguments)
    out = Path(options.out).resolve()
    stages = [stage for stage in STAGES if options.only is None or stage.name in options.only]
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        (out / f"{stage.name}.json").unlink(missing_ok=True)
    work = tempfile.mkdtemp(prefix="gpu-")
    data = str(Path(options.data).resolve())
    shared = Options(str(out), data, work, options.device, options.tiny, options.items)

    def command(stage: Stage, bound: float) -> list[str]:
        return [sys.executable, "-m", "tests.gpu.stages", stage.name, str(bound), shared.as_json()]

    def after(outcome: Outcome) -> None:
        print(outcome, flush=True)
        (out / "table.md").write_text(table(out) + "\n")
        if options.pack:
            _pack(out, Path(options.pack))

    try:
        outcomes = run_stages(
            stages, out, seconds=options.seconds, command=command, environment=_environment(options), after=after
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{table(out)}")
    return int(any(outcome.state == report.FAILED for outcome in outcomes))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=(__doc__ or "").partition("\n\n")[2])
    names = [stage.name for stage in STAGES]
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for results and logs")
    parser.add_argument("--seconds", type=float, default=NOMINAL_SECONDS, help="for everything (default: %(default)g)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: nothing runs on a card")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script itself")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=f"of {', '.join(names)}")
    parser.add_argument("--items", nargs="+", default=[], metavar="TEXT", help="only items whose names contain a TEXT")
    parser.add_argument("--data", default=str(DATA), metavar="DIR", help="packed data (default: .offline/data)")
    parser.add_argument("--pack", metavar="FILE", help="pack the results into this .tar.gz after every stage")
    options = parser.parse_args(arguments)
    if not (Path(options.data) / "data.json").exists():
        parser.error(f"--data: {options.data} holds no packed data; run `make offline-kit` first")
    if options.device == "cuda" and shutil.which("nvidia-smi") is None:
        parser.error("--device: no NVIDIA driver is installed here; write --device cpu --tiny to try the script")
    return options


def _environment(options: argparse.Namespace) -> dict[str, str]:
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": python_path}
    if options.device == "cpu":
        # One thread: runs are forked, which threads of OpenMP do not survive.
        return {**environment, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "PASSIVE", **environment}


def _pack(out: Path, archive: Path) -> None:
    """Replace the archive by one of the results so far."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(f".{archive.name}")
    with tarfile.open(partial, "w:gz") as file:
        file.add(out, arcname="results")
    partial.replace(archive)


if __name__ == "__main__":
    sys.exit(main())
