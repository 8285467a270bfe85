"""The tasks for lm-evaluation-harness read the rows that they are written for."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TASKS = sorted((ROOT / "configs/lm_eval").glob("*.yaml"))
ROWS = ROOT.parent / "shared/data/eval"
STORIES = ROOT.parent / "shared/data/checkpoints/stories260K-hf"


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_is_named_after_its_file_and_reads_a_local_one(path: Path) -> None:
    task = read(path)
    assert (task["task"], task["tag"], task["dataset_path"]) == (f"{path.stem}_local", "periln", "json")
    (file,) = task["dataset_kwargs"]["data_files"].values()
    assert re.fullmatch(r"data/eval/\w+\.jsonl", file)
    assert list(task["dataset_kwargs"]["data_files"]) == [task["test_split"]]


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
@pytest.mark.skipif(not ROWS.is_dir(), reason="the rows are not in ../shared/data/eval")
def test_a_task_reads_what_its_rows_have(path: Path) -> None:
    task = read(path)
    (file,) = task["dataset_kwargs"]["data_files"].values()
    with (ROWS / Path(file).name).open() as lines:
        row = json.loads(next(lines))
    texts = " ".join(str(task.get(f"doc_to_{part}")) for part in ("text", "choice", "target"))
    named = set(re.findall(r"{{(\w+)}}", texts))
    assert named
    assert named <= row.keys()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
@pytest.mark.skipif(not (ROWS.is_dir() and STORIES.is_dir()), reason="rows or model are not in ../shared/data")
def test_every_task_runs_in_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate  # type: ignore[import-not-found]
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    (tmp_path / "data").mkdir()
    (tmp_path / "data/eval").symlink_to(ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(STORIES), "dtype": "float32"},
        tasks=[f"{path.stem}_local" for path in TASKS],
        task_manager=TaskManager(include_path=str(ROOT / "configs/lm_eval"), include_defaults=False),
        device="cpu",
        limit=8,
        bootstrap_iters=0,
    )
    assert found["results"].keys() == {f"{path.stem}_local" for path in TASKS}
    assert all("acc,none" in scores for scores in found["results"].values())
