"""A finished run that a test may damage, made once and copied for each test, and the ways of damage."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

from tests.tiny import tiny_config, write_corpus

Harm = Callable[[bytes], bytes]


class Outcome(NamedTuple):
    """The exit code of a command and all that it printed or logged."""

    code: int
    said: str


class Workplace(NamedTuple):
    """A copy of the finished run: eight steps, checkpoints of steps 3, 6 and 8."""

    folder: Path
    corpus: Path

    @property
    def run(self) -> Path:
        return self.folder / "runs/tiny"

    @property
    def newest(self) -> Path:
        return self.run / "checkpoints/step_000008"

    @property
    def cache(self) -> Path:
        (store,) = (self.folder / "cache").glob("text-*/")
        return store

    @property
    def config(self) -> Path:
        """The configuration that started the run."""
        path, settings = self.folder / "tiny.yaml", tiny_config(self.folder)
        settings["task"]["data"]["sources"] = [str(self.corpus / "*.txt")]  # type: ignore[index]
        settings["probes"] = {"layers_every": 4}  # so that every table has rows
        path.write_text(yaml.safe_dump(settings))
        return path

    def copy(self, folder: Path) -> Workplace:
        """Copy run and cache; the corpus, by whose path the cache is found, stays."""
        shutil.copytree(self.folder / "runs", folder / "runs")
        shutil.copytree(self.folder / "cache", folder / "cache")
        config = folder / "runs/tiny/config.yaml"
        config.write_text(config.read_text().replace(f"{self.folder}/cache", f"{folder}/cache"))
        return Workplace(folder, self.corpus)


def make(folder: Path) -> Workplace:
    """Train the run, in a rank of the test pool."""
    workplace = Workplace(folder, write_corpus(folder / "corpus"))
    outcome = start(str(workplace.config))
    assert outcome.code == 0, outcome.said
    return workplace


def start(config: str, *words: str) -> Outcome:
    """Run `python -m train` in a rank of the test pool, which keeps its process group."""
    from train.__main__ import main
    from train.ranks import distributed

    stop, distributed.stop = distributed.stop, lambda: None
    try:
        return said_by(lambda: main([config, *words]))
    finally:
        distributed.stop = stop


def said_by(command: Callable[[], int]) -> Outcome:
    """Run a command in this process; a traceback fails the test."""
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    packages = [logging.getLogger(name) for name in ("train", "analysis")]
    for package in packages:
        package.addHandler(handler)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = command()
    finally:
        for package in packages:
            package.removeHandler(handler)
            package.handlers = []
            package.propagate = True
    return Outcome(code, output.getvalue())


# ------------------------------------------------------------------------------------------------------------- damage


def cut(content: bytes) -> bytes:
    """Keep the first half, and no row of a table whole at its end: a cut between two rows damages neither."""
    return content[: len(content) // 2].rstrip(b"}\n")


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def empty(content: bytes) -> bytes:
    return b""


def no_json(content: bytes) -> bytes:
    return b"\x80\xff not JSON"


def a_list(content: bytes) -> bytes:
    return b"[1, 2]\n"


def nested(content: bytes) -> bytes:
    return b"[" * 100_000


def replaced(old: bytes, new: bytes) -> Harm:
    """Put other words into a text; they are there."""

    def harm(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return harm


def harmed(path: Path, harm: Harm | None) -> None:
    """Damage a file, or delete a file or folder."""
    if harm is not None:
        path.write_bytes(harm(path.read_bytes()))
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
