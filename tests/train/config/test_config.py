"""Reading, writing and comparing configurations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from modeling.decoder.facts_periln import ACTIVATIONS
from tests.tiny import tiny_file
from tests.tiny_filter import tiny_filter_file
from tests.tiny_task import tiny_task_file
from train.config import yaml_text
from train.config.batch import micro_batches
from train.config.errors import ConfigError
from train.config.load import load, to_dict, to_yaml
from train.config.resume import differences
from train.config.rules import RULES
from train.config.run import RunConfig
from train.config.schema import check, key_paths
from train.config.tasks.kinds import TASK_RULES, TaskConfig
from train.config.tasks.language_model import LanguageModelConfig, SourceConfig
from train.config.tasks.values import Values

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_file(tmp_path)


OTHERS = ("cluster", "lm_eval", "sweeps")  # folders of configs/ that have no runs


def test_every_config_of_the_repository_loads() -> None:
    folders = {folder for folder in (ROOT / "configs").iterdir() if folder.is_dir()}
    files = [
        file for folder in folders - {ROOT / "configs" / name for name in OTHERS} for file in folder.glob("*.yaml")
    ]
    assert {load(file).task.kind for file in files} == {task.kind for task in get_args(TaskConfig)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1.5E-4", 1.5e-4),
        (".5", 0.5),
        ("1e9", 10**9),
        ("30_000_000", 30_000_000),
        ("010", 10),
        ("0x10", 16),
        ("-7", -7),
        ("true", True),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1.2.3", "1.2.3"),
        ("'3'", "3"),
        ("[1, 2e0, a]", [1, 2, "a"]),
    ],
)
def test_values_are_read_as_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    file = tmp_path / "value.yaml"
    file.write_text(f"key: {text}\n")
    read = yaml_text.read(file)
    assert read == ({"key": value}, [])
    assert type(read.tree and read.tree["key"]) is type(value)


@pytest.mark.parametrize(
    "tree",
    [
        {"text": "1e9", "more": ["no", "3e-4", "1:30", "", "a: b", "# c", "~", "<<"]},
        {"numbers": [1e-8, 1e16, 0.1, 3, -0.0, 10**12]},
        {"nested": {"empty": [], "none": None, "mappings": [{"a": [1, 2]}, {"b": True}]}},
    ],
)
def test_what_is_written_reads_back_the_same(tmp_path: Path, tree: dict[str, Any]) -> None:
    file = tmp_path / "tree.yaml"
    file.write_text(yaml_text.to_yaml(tree))
    assert yaml_text.read(file) == (tree, [])


def test_a_run_written_with_its_defaults_loads_as_an_equal_one(path: Path) -> None:
    config = load(path, ["task.model.norm_placement=[pre, peri]", "optim.warmup=2"])
    written = path.with_name("written.yaml")
    written.write_text(to_yaml(config))
    assert load(written) == config
    assert set(_flat(to_dict(config))) <= set(key_paths(RunConfig)) | {
        "task.model.rope_parameters.rope_type",
        "task.model.rope_parameters.rope_theta",
    }


def test_overrides_replace_values_and_merge_sections(path: Path) -> None:
    config = load(
        path,
        [
            "optim.betas=[0.8, 0.9]",
            "optim.gradient_clipping=null",
            "optim={lr: 1, eps: 1e-6}",
            "steps=1e1",
            "task.model.rope_parameters={rope_type: linear, factor: 2}",
            "task.data.sources=[a.txt, {path: b.jsonl, text_column: body}]",
            "task.data.sources.0=c.txt",
        ],
    )
    assert config.optim.betas == (0.8, 0.9)
    assert config.optim.gradient_clipping is None
    assert (config.optim.lr, config.optim.eps, config.steps) == (1.0, 1e-6, 10)
    assert isinstance(config.optim.lr, float)
    assert isinstance(config.steps, int)
    assert isinstance(config.task, LanguageModelConfig)
    assert config.task.model.rope_parameters == {"rope_type": "linear", "factor": 2}
    assert config.task.data.sources == (SourceConfig(path="c.txt"), SourceConfig(path="b.jsonl", text_column="body"))


def test_a_whole_warmup_is_steps_and_a_fraction_is_a_share(path: Path) -> None:
    assert type(load(path, ["optim.warmup=2"]).optim.warmup) is int
    assert type(load(path, ["optim.warmup=0.0"]).optim.warmup) is float


def test_an_empty_section_has_its_defaults(path: Path) -> None:
    assert load(path, ["checkpoint=null"]).checkpoint == load(path, ["checkpoint={every: 1000, keep: 2}"]).checkpoint


def test_a_merge_key_shares_settings(tmp_path: Path) -> None:
    file = tmp_path / "merged.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n")
    assert yaml_text.read(file) == ({"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}, [])


def test_a_key_given_twice_is_refused_with_both_lines(path: Path) -> None:
    path.write_text(path.read_text() + "seed: 1\nlog_every: 2\nseed: 2\n")
    lines = path.read_text().count("\n")
    with pytest.raises(ConfigError, match=f":{lines}: seed appears twice, first on line {lines - 2}"):
        load(path)


def test_an_unknown_key_of_another_stack_names_ours(path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(path, ["optim.learning_rate=1", "max_grad_norm=1", "task.model.num_layers=2"])
    assert "did you mean optim.lr?" in str(error.value)
    assert "did you mean optim.gradient_clipping?" in str(error.value)
    assert "did you mean task.model.num_hidden_layers?" in str(error.value)


def test_a_rule_speaks_although_another_value_is_wrong(path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(path, ["optim.lr=fast", "task.model.num_key_value_heads=3", "task.model.hidden_size=0"])
    assert len(error.value.faults) == 3


@pytest.mark.parametrize("kind", TASK_RULES)
def test_every_rule_reads_keys_that_exist(tmp_path: Path, kind: str) -> None:
    config = load(tiny_task_file(tmp_path, kind))
    leaves = check(RunConfig, to_dict(config)).leaves
    assert leaves.keys() >= set(key_paths(config.optim.__class__, "optim."))
    only = {  # speak of some filter tasks alone
        *(["_a_crop_holds_two_pixels"] if not kind.endswith("upsampling") else []),
        *(["_other_guidance_is_read"] if kind != "depth_upsampling" else []),
    }
    for rule in (*RULES, *TASK_RULES[kind]):
        if rule.__name__ not in only:
            assert list(rule(Values(leaves))) == []  # an unknown path raises


def test_a_key_of_another_task_is_not_recommended(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tiny_filter_file(tmp_path), ["task.model.num_attention_heads=3"])
    assert "did you mean" not in str(error.value)
    assert "task.model.num_attention_heads: unknown key; allowed keys: architecture," in str(error.value)


def test_the_activations_are_those_of_transformers() -> None:
    activations = pytest.importorskip("transformers.activations")
    assert set(ACTIVATIONS) <= set(activations.ACT2FN)


def test_differences_name_what_may_not_change(path: Path) -> None:
    old = load(path)
    may = ["engine.zero_stage=2", "micro_batch_size=1", "log_every=7", "checkpoint.every=9", "task.data.num_workers=2"]
    assert differences(old, load(path, may)) == []
    new = load(path, [*may, "seed=3", "task.data.sources=[a.txt, b.txt]", "optim.betas=[0.9, 0.99]"])
    assert "seed: 0 -> 3" in differences(old, new)
    assert "task.data.sources.1.path: (not set) -> 'b.txt'" in differences(old, new)
    assert "optim.betas: [0.9, 0.95] -> [0.9, 0.99]" in differences(old, new)
    assert len([line for line in differences(old, new) if not line.startswith("task.data.sources")]) == 2


def test_a_key_that_an_older_run_did_not_know_has_its_default(path: Path) -> None:
    new = load(path)
    old = to_dict(new)
    del old["seed"], old["task"]["model"]["qk_norm"]
    assert differences(old, new) == []
    assert differences(old, load(path, ["seed=1"])) == ["seed: 0 -> 1"]


@pytest.mark.parametrize(
    ("micro", "world_size", "expected"),
    [(4, 1, (4, 2)), (3, 1, (2, 4)), (8, 2, (4, 1)), (1, 8, (1, 1)), (7, 1, (4, 2))],
)
def test_micro_batches_divide_the_share_of_a_rank(
    path: Path, micro: int, world_size: int, expected: tuple[int, int]
) -> None:
    config = load(path, [f"micro_batch_size={micro}"])
    assert config.global_batch_size == 8
    assert micro_batches(config, world_size) == expected


def test_a_config_is_read_without_torch() -> None:
    code = (
        "import sys; from train.config.load import load; load('configs/language_model/quickstart.yaml');"
        "print(sorted({'torch', 'transformers', 'deepspeed', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _flat(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the paths of a tree's values; of a list, those of its first section."""
    paths: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            paths += _flat(value, f"{prefix}{key}.")
        elif value and isinstance(value, list | tuple) and isinstance(value[0], dict):
            paths += _flat(value[0], f"{prefix}{key}.0.")
        else:
            paths.append(f"{prefix}{key}")
    return paths
