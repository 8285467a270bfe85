"""The cluster file: every fault at once, each with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.slurm.cluster import load
from launch.slurm.times import time_limit_seconds
from train.config.errors import ConfigError

ROOT = Path(__file__).parents[3]


def faults(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.faults


def test_the_example_is_right() -> None:
    cluster = load(ROOT / "configs/cluster/example.yaml")
    assert (cluster.nodes, cluster.ranks, cluster.seconds) == (2, 8, 86_400)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("10:30", 630), ("24:00:00", 86_400), ("2-0", 172_800), ("1-1:30", 91_800), ("1-01:01:01", 90_061)],
)
def test_a_time_is_read_as_sbatch_reads_it(text: str, seconds: int) -> None:
    assert time_limit_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nodes: 2", "time: missing"),
        ("time: 60\npartitoin: gpu", "did you mean partition?"),
        ("time: tomorrow", "24:00:00"),
        ("time: 1:2:3:4", "24:00:00"),
        ("time: 0", "means no time limit"),
        ("time: 5\nsignal_seconds: 300", "not between 1 and the time limit (300 s)"),
        ("time: 60\nnodes: 0", "write 1 or more"),
        ("time: 60\npartition: 'gpu; rm -rf /'", "not a valid name"),
        ("time: 60\nmemory: plenty", "480G"),
        ("time: 60\nmodules: ['cuda; true']", "modules.0"),
        ("time: 60\nenvironment: {'A B': 1}", "not a valid variable name"),
        ("time: 60\nenvironment: {HF_TOKEN: hf_abc}", "looks like a secret"),
        ("time: 60\nenvironment: {WANDB_API_KEY: abc}", "looks like a secret"),
        ("time: 60\nenvironment: {PYTHONPATH: /x}", "the job sets this itself"),
        ("time: 60\nenvironment: {A: [1]}", "not text or a number"),
        ("time: 60\nenvironment: {null: 2}", "keys must be text, and null is not"),
        ("time: 60\nenvironment: {3: 2}", "keys must be text, and 3 is not"),
        ("time: 60\nenvironment: {2026-01-01: 2}", "not a valid variable name"),
        ("time: 60\nenvironment: {1.5: 2, true: 1}", "keys must be text, and 1.5 is not"),
        ("time: 60\nrestarts: -1", "restarts: -1 is too small; write 0 or more"),
        ("time: 60\nrestarts_without_progress: many", "restarts_without_progress"),
        ("time: 60\nallow_in_script: [HF_TOKEN]", "nothing here that looks like a secret"),
        ("time: 60\nenvironment: {HF_HOME: /x}\nallow_in_script: [HF_HOME]", "nothing here that looks like a secret"),
        ("time: 60\nenvironment: {A_KEY: x, B_KEY: y}\nallow_in_script: [A_KEY]", "allow_in_script: [B_KEY]"),
        ("time: 60\nsbatch: [--nodes=3]", "write nodes: ..."),
        ("time: 60\nsbatch: [--output=x]", "the job sets --output itself"),
        ("time: 60\nsbatch: ['-C h100']", "not a long sbatch option"),
        ('time: 60\nsbatch: ["--comment=x\\n#SBATCH --uid=0"]', "not a long sbatch option"),
        ("time: 60\nvenv: /nowhere", "has no bin/python"),
        ("time: 60\nvenv: /usr\ncontainer: x.sif", "give one or the other"),
        ("time: 60\ncontainer_mounts: [/scratch]", "no effect without container"),
        ("time: 60\ncontainer: x.sif\ncontainer_mounts: ['a,b']", "container_mounts.0"),
    ],
)
def test_a_fault_names_the_key_and_the_remedy(tmp_path: Path, text: str, told: str) -> None:
    assert told in "\n".join(faults(tmp_path, text))


def test_a_secret_is_not_repeated_in_the_message(tmp_path: Path) -> None:
    assert "hf_abc" not in "\n".join(faults(tmp_path, "time: 60\nenvironment: {HF_TOKEN: hf_abc}"))


def test_what_only_looks_like_a_secret_can_be_allowed_by_name(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    lines = [
        "environment: {SORT_KEY: date}",
        "sbatch: ['--comment=SORT_KEY=date']",
        "allow_in_script: [SORT_KEY, sbatch]",
    ]
    path.write_text("\n".join(["time: 60", *lines]))
    assert load(path).environment == {"SORT_KEY": "date"}


@pytest.mark.parametrize(("text", "limits"), [("", (100, 3)), ("restarts: null", (None, 3)), ("restarts: 0", (0, 3))])
def test_restarts_are_limited_unless_null(tmp_path: Path, text: str, limits: tuple[int | None, int | None]) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"time: 60\n{text}")
    cluster = load(path)
    assert (cluster.restarts, cluster.restarts_without_progress) == limits


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    assert len(faults(tmp_path, "nodes: 0\npartition: 'a b'\nqoss: x")) == 4


def test_a_missing_file_names_the_example(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match="configs/cluster/example"):
        load(tmp_path / "empty.yaml")
