"""`--help` and mistakes on the command line are answered without the libraries that take seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib", "deepspeed", "numpy")
COMMANDS = {  # command -> arguments, each of them a mistake
    "train": ["", "--nonsense", "configs/language_model/quickstart.yaml --check --describe", "no-such-file.yaml"],
    "train.data": ["", "--nonsense", "no-such-file.yaml", "configs/language_model/quickstart.yaml --step 0"],
    "train.evaluate": ["", "RUN --nonsense", "no-such-run", "RUN --step first"],
    "train.export": ["", "RUN", "RUN OUT --nonsense", "no-such-run OUT", "RUN OUT --dtype fp64", "RUN OUT --format x"],
    "train.convert": ["", "FOLDER --nonsense", "no-such-folder"],
    "launch": ["", "nonsense", "--nonsense"],
    "launch local": ["", "configs/language_model/quickstart.yaml --ranks many", "no-such-file.yaml"],
    "launch slurm": ["", "configs/language_model/quickstart.yaml", "no-such-file.yaml --cluster no-such-file.yaml"],
    "launch plan": ["", "configs/language_model/quickstart.yaml --gpus many", "no-such-file.yaml"],
    "launch sweep": ["", "no-such-file.yaml", "configs/sweeps/placements.yaml --nonsense"],
    "analysis": ["", "nonsense", "--nonsense"],
    "analysis report": ["", "RUN", "RUN --out OUT --nonsense"],
    "analysis card": ["", "RUN", "RUN --out FILE --step last"],
    "analysis inspect": ["", "MODEL", "MODEL --out OUT --dtype fp64", "MODEL --out OUT --nonsense"],
}
# Runs a module as `python -m` does and reports, on a last line of stdout, what it has imported.
SCRIPT = f"""
import runpy, sys
module = sys.argv[1]
sys.argv = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print(*sorted(set({HEAVY}) & set(sys.modules)), file=sys.__stdout__)
"""


def run(command: str) -> tuple[int, str, str]:
    """Run a command; returns its exit code, the heavy modules that it imported, and its stderr."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *command.split()], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    assert run(f"{command} --help") == (0, "", "")


@pytest.mark.parametrize(
    "command", [f"{command} {wrong}".strip() for command, mistakes in COMMANDS.items() for wrong in mistakes]
)
def test_a_mistake_on_the_command_line_imports_nothing_heavy(command: str) -> None:
    code, imported, message = run(command)
    assert (code, imported) == (2, ""), message
    assert message.strip()
    assert "Traceback" not in message


def test_the_check_finds_a_heavy_import() -> None:
    assert run("json.tool --help")[:2] == (0, "")
    assert "torch" in run("torch.version")[1].split()
