"""The guides do what they say: their edits apply to a copy of the repository, and their commands succeed there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs/guides"
COPIED = ("analysis", "configs", "docs", "launch", "modeling", "tests", "train", "pyproject.toml")
# A guide whose commands take less than 15 s is checked by `make test`, the others by `make slow`.
QUICK = ("add-a-data-source", "add-a-probe")


class Block(NamedTuple):
    """A fenced block and what the guide wants done with it."""

    action: Literal["create", "edit", "run"]
    path: str  # of the file to create or edit
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a guide in order.

    The paragraph above a block ends with "Create `PATH`:" for a new file, or "In `PATH`:" for a diff; a bash block is
    run.
    """
    pieces = re.split(r"^```(\w+)\n(.*?)^```\n", page, flags=re.MULTILINE | re.DOTALL)
    for prose, language, text in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=False):  # prose comes last, too
        above = " ".join(prose.split())
        if language == "bash":
            yield Block("run", "", text)
            continue
        wanted = re.search(r"(Create|[Ii]n) `([^`]+)`:$", above)
        assert wanted, f"neither created nor edited: the block below {above[-60:]!r}"
        assert (language == "diff") == (wanted[1] != "Create"), above
        yield Block("create" if wanted[1] == "Create" else "edit", wanted[2], text)


def edited(source: str, diff: str) -> str:
    """Apply a diff without line numbers; `@@` lines separate its hunks, and each must fit in exactly one place.

    Comments at the end of a line may differ, so that rewording one breaks no guide.
    """
    lines = source.splitlines()
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        changes = [(line[:1] or " ", line[1:]) for line in hunk.splitlines()]
        assert all(mark in (" ", "+", "-") for mark, _ in changes), hunk
        before = [code(text) for mark, text in changes if mark != "+"]
        starts = [i for i in range(len(lines)) if [code(line) for line in lines[i : i + len(before)]] == before]
        assert len(starts) == 1, f"fits in {len(starts)} places:\n{hunk}"
        kept = iter(lines[starts[0] : starts[0] + len(before)])
        after: list[str] = []
        for mark, text in changes:
            line = text if mark == "+" else next(kept)
            after += [] if mark == "-" else [line]
        lines[starts[0] : starts[0] + len(before)] = after
    return "".join(f"{line}\n" for line in lines)


def code(line: str) -> str:
    """Return a line without the comment at its end."""
    return re.sub(r"  # .*$", "", line)


def follow(page: str, copy: Path) -> None:
    """Do what a guide says in a copy of the repository."""
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    for block in blocks(page):
        path = copy / block.path
        match block.action:
            case "create":
                assert not path.exists(), path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            case "edit":
                path.write_text(edited(path.read_text(), block.text))
            case "run":
                command = ["bash", "-euo", "pipefail", "-c", block.text]
                done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name)
        else:
            shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(page.stem, marks=() if page.stem in QUICK else pytest.mark.slow)
        for page in sorted(GUIDES.glob("*.md"))
    ],
)
def test_a_guide_can_be_followed(name: str, copy: Path) -> None:
    follow((GUIDES / f"{name}.md").read_text(), copy)


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.stem)
def test_the_edits_of_a_guide_fit_the_code(page: Path) -> None:
    new: set[str] = set()
    changed: dict[str, str] = {}
    for block in blocks(page.read_text()):
        if block.action == "create":
            new.add(block.path)
            assert not (ROOT / block.path).exists()
        elif block.action == "edit":
            source = changed.get(block.path) or (ROOT / block.path).read_text()
            changed[block.path] = edited(source, block.text)
    for path, source in changed.items():
        if path.endswith(".py"):
            compile(source, path, "exec")
    assert new or changed


def test_an_edit_that_no_longer_fits_is_found() -> None:
    assert edited("a\nb\nc\n", " a\n-b\n+d\n") == "a\nd\nc\n"
    assert edited("a  # one\nb\n", " a  # two\n-b\n") == "a  # one\n"
    with pytest.raises(AssertionError, match="0 places"):
        edited("a\nc\n", " a\n-b\n")
    with pytest.raises(AssertionError, match="2 places"):
        edited("a\na\n", "-a\n")
