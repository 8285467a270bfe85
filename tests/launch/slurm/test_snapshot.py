"""Contents of a job's snapshot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm.snapshot import ROOT, take


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small tree with a tracked, an untracked and an ignored file."""
    root = tmp_path / "checkout"
    for package in ("launch", "train", "modeling", "analysis", "configs"):
        (root / package).mkdir(parents=True)
        (root / package / "code.py").write_text(f"# {package}\n")
    (root / "pyproject.toml").write_text("")
    (root / ".gitignore").write_text("*.log\n__pycache__/\n")
    return root


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def add_more(root: Path) -> None:
    (root / "train/new.py").write_text("# new\n")
    (root / "train/noise.log").write_text("ignored\n")
    (root / "train/__pycache__").mkdir()
    (root / "train/__pycache__/code.pyc").write_text("cache\n")
    (root / "runs").mkdir()
    (root / "runs/metrics.jsonl").write_text("{}\n")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


EXPECTED = {f"{package}/code.py" for package in ("launch", "train", "modeling", "analysis", "configs")} | {
    "pyproject.toml",
    "snapshot.json",
    "train/new.py",
}


def test_a_snapshot_holds_tracked_and_new_files(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "begin")
    (checkout / "modeling/code.py").write_text("# changed\n")
    add_more(checkout)
    assert take(tmp_path / "copy", root=checkout) == 7
    assert files(tmp_path / "copy") == EXPECTED
    assert (tmp_path / "copy/modeling/code.py").read_text() == "# changed\n"
    described = json.loads((tmp_path / "copy/snapshot.json").read_text())
    assert len(described["git_sha"]) == 40
    assert described["git_dirty"] is True


def test_a_deleted_file_is_passed_over(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    (checkout / "analysis/code.py").unlink()
    take(tmp_path / "copy", root=checkout)
    assert "analysis/code.py" not in files(tmp_path / "copy")


def test_a_snapshot_needs_no_git(checkout: Path, tmp_path: Path) -> None:
    add_more(checkout)
    take(tmp_path / "copy", root=checkout)
    assert files(tmp_path / "copy") == EXPECTED | {"train/noise.log"}
    assert json.loads((tmp_path / "copy/snapshot.json").read_text())["git_sha"] is None


def test_a_checkout_that_a_repository_around_it_ignores_is_copied(checkout: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("checkout/\n")
    take(tmp_path / "copy", root=checkout)
    assert "train/code.py" in files(tmp_path / "copy")


def test_python_runs_the_snapshot_from_any_folder(tmp_path: Path) -> None:
    """As the job does: PYTHONSAFEPATH keeps the working folder, where the code may have changed, off the path."""
    take(tmp_path / "copy")
    (tmp_path / "work/train").mkdir(parents=True)
    (tmp_path / "work/train/__init__.py").write_text("raise SystemExit('not the snapshot')\n")
    environment = {"PYTHONPATH": str(tmp_path / "copy"), "PYTHONSAFEPATH": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "train", str(ROOT / "configs/language_model/quickstart.yaml"), "steps=0"]
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("steps: 0")
