"""The model card: metadata that the hub's own client reads back, and sentences that agree with the run's files."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from analysis.__main__ import main as analysis
from analysis.figures.card import card_figure
from analysis.runs import read_run
from modeling.decoder.facts_placements_periln import CHOICES
from tests.tiny import tiny_config
from tests.train.conftest import Exported
from train.config.errors import ConfigError
from train.config.load import load, load_tree
from train.config.resume import differences
from train.config.run import RunConfig
from train.export import measured
from train.export.card import TRANSFORMERS, model_card
from train.tasks import build_task

ROOT = Path(__file__).parents[3]
STORED = ROOT / "tests/train/stored_run"


def config_of(folder: Path, *overrides: str) -> RunConfig:
    return load_tree(tiny_config(folder), overrides)


def card_of(config: RunConfig, run: Path, step: int = 6, **options: Any) -> str:
    return model_card(build_task(config), config, run, step, **options)


def run_folder(folder: Path, *, data: Mapping[str, Any], metrics: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"git_sha": "0123abc", "git_dirty": False, "precision": "bf16", "world_size": 2, "data": data}
    (folder / "environment.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 4, **metrics}) + "\n")
    return folder


SOURCES = {
    "task.data.sources[0]": {"path": "roneneldan/TinyStories", "formats": {"named": 1}, "documents": 12, "bytes": 3400},
    "task.data.sources[1]": {"path": "/home/someone/texts/a.txt", "formats": {"text": 1}, "documents": 3, "bytes": 70},
}


def test_the_hubs_client_reads_the_metadata_back(tmp_path: Path) -> None:
    data = {
        "training_documents": 15,
        "training_tokens": 900,
        "sources": SOURCES,
        "tokens_by_source": {"task.data.sources[0]": 850, "task.data.sources[1]": 50},
        "validation_sets": [{"label": "one", "documents": 1}, {"label": "one_two", "documents": 2}],
    }
    metrics = {"validation_loss": 2.5, "validation_one_loss": 2.25, "validation_one_two_perplexity": 12.5}
    run = run_folder(tmp_path / "run", data=data, metrics={**metrics, "validation_one_two_loss": None})
    card = card_of(config_of(tmp_path, "export.license=apache-2.0"), run)
    read: Any = ModelCard(card).data
    assert (read.license, read.library_name, read.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    assert read.datasets == ["roneneldan/TinyStories"]
    assert read.model_name == "tiny"
    assert read.eval_results is not None
    found = {(each.dataset_name, each.metric_type): each.metric_value for each in read.eval_results}
    assert found == {
        ("validation data of the run", "loss"): 2.5,
        ("validation data: one", "loss"): 2.25,
        ("validation data: one_two", "perplexity"): 12.5,
    }
    assert {each.dataset_type for each in read.eval_results} == {"roneneldan/TinyStories"}
    assert {each.task_type for each in read.eval_results} == {"text-generation"}
    assert "- task.data.sources[0] roneneldan/TinyStories: 12 documents, 3.4 kB, 850 tokens\n" in card
    assert "- task.data.sources[1] .../texts/a.txt: 3 documents, 70 bytes, 50 tokens\n" in card
    assert "someone" not in card  # whose machine it was
    assert "periln at commit `0123abc`\n" in card
    assert "precision bf16, 2 ranks\n" in card


def test_nothing_is_claimed_that_is_not_known(tmp_path: Path) -> None:
    card = card_of(config_of(tmp_path), tmp_path / "no-run")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["periln"]}
    assert "nan" not in card
    assert "## Evaluation" not in card
    assert "## Measurements" not in card


@pytest.mark.parametrize("name", ["apache-2.0", "mit", "cc-by-nc-sa-4.0", "other", "llama3.1", "bsd-3-clause"])
def test_a_license_is_an_identifier_of_the_hub(tmp_path: Path, name: str) -> None:
    assert config_of(tmp_path, f"export.license={name}").export.license == name


@pytest.mark.parametrize(
    ("name", "instead"),
    [("Apache-2.0", "apache-2.0"), ("Apache 2.0", "apache-2.0"), ("'MIT '", "mit"), ("''", "apache-2.0")],
)
def test_another_license_is_refused_with_the_identifier(tmp_path: Path, name: str, instead: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, f"export.license={name}")
    (fault,) = caught.value.faults
    assert fault.startswith("export.license: ")
    assert fault.endswith(f"write one like {instead}, or null")


def test_the_license_may_change_at_resume(tmp_path: Path) -> None:
    assert not differences(config_of(tmp_path), config_of(tmp_path, "export.license=mit"))
    assert differences(config_of(tmp_path), config_of(tmp_path, "optim.lr=1"))


@pytest.mark.parametrize("placement", CHOICES)
def test_the_card_describes_the_placement(tmp_path: Path, placement: str) -> None:
    config = config_of(tmp_path, f"task.model.norm_placement={placement}", "task.model.num_hidden_layers=4")
    card = card_of(config, tmp_path)
    record = CHOICES[placement]
    assert f"- {record.title} (`{placement}`): {record.description}. Source: {record.source}\n" in card


def test_a_list_of_placements_is_described_name_by_name(tmp_path: Path) -> None:
    card = card_of(config_of(tmp_path, "task.model.norm_placement=[pre, peri]"), tmp_path)
    assert "- a norm placement for each layer: pre, peri\n" in card
    assert CHOICES["pre"].source in card
    assert CHOICES["peri"].description in card


@dataclass
class Native:
    architecture: str = "LlamaForCausalLM"

    def usage(self) -> str:
        return 'model = AutoModelForCausalLM.from_pretrained("FOLDER")'

    def lines(self) -> list[str]:
        return ["architecture: `LlamaForCausalLM`", "compared with the trained model: fp32, logits differ by at most 0"]


def test_a_native_export_says_how_far_it_differs(tmp_path: Path) -> None:
    config = config_of(tmp_path, "task.model.norm_placement=pre")
    card = card_of(config, tmp_path, native=Native(), place="owner/name")
    architecture = card.split("## Architecture\n\n")[1].split("\n\n")[0].splitlines()
    assert architecture[1:] == [f"- {line}" for line in Native().lines()]
    assert "Needs transformers with `LlamaForCausalLM`" in card
    assert 'model = AutoModelForCausalLM.from_pretrained("owner/name")\n' in card
    assert "trust_remote_code" not in card
    assert "trust_remote_code=True" in card_of(config, tmp_path)


def test_the_code_loads_from_where_the_folder_is(tmp_path: Path) -> None:
    assert 'from_pretrained("owner/name", ' in card_of(config_of(tmp_path), tmp_path, place="owner/name")


def test_the_card_names_the_version_of_transformers_that_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"transformers>={TRANSFORMERS},<6" in project["dependencies"]


# ------------------------------------------------------------------------------------------------------- measurements


def stored_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (STORED / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("up_to", "measured_at"), [(1, 1), (3, 2), (6, 6), (100, 6)])
def test_the_measurements_are_those_of_the_last_measured_step(up_to: int, measured_at: int) -> None:
    variance, norm = measured.stream_variance(STORED, up_to), measured.gradient_norm(STORED, up_to)
    activations = [row for row in stored_rows("activations") if row["step"] == measured_at]
    streams = {r["layer"]: r["variance"] for r in activations if r["site"] == "mlp.stream"}
    assert (variance, len(streams)) == ((measured_at, streams), 2)
    gradients = [row for row in stored_rows("gradients") if row["step"] == measured_at]
    for layer in (0, 1):
        squares = [row["norm"] ** 2 for row in gradients if row["layer"] == layer]
        assert norm is not None
        assert norm.values[layer] == pytest.approx(np.sqrt(np.sum(squares)), rel=1e-12)
    words = card_of(load(STORED / "config.yaml"), STORED, up_to)
    assert f"(step {measured_at}): {streams[0]:.4g} in layer 0, {streams[1]:.4g} in layer 1; from " in words


def test_damaged_and_missing_rows_count_for_nothing(tmp_path: Path) -> None:
    assert measured.stream_variance(tmp_path, 5) is None
    rows = [
        {"step": 1, "layer": 0, "site": "mlp.stream", "variance": 2.0},
        {"step": 2, "layer": 0, "site": "mlp.stream", "variance": None},
        {"step": 2, "layer": 1, "site": "mlp.stream", "variance": 3.0},
        {"step": 2, "layer": None, "site": "embedding", "variance": 9.0},
    ]
    (tmp_path / "activations.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 3, "la')
    assert measured.stream_variance(tmp_path, 5) == (2, {1: 3.0})


def test_the_figure_shows_the_rows_of_the_step(tmp_path: Path) -> None:
    figure = card_figure(read_run(STORED), step=3)
    assert figure is not None
    variance, norm = figure.axes
    activations = [row for row in stored_rows("activations") if row["step"] == 2]
    line = variance.get_lines()[0]
    drawn = dict(zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True))
    expected = {row["layer"] + 1.0: row["variance"] for row in activations if row["site"] == "mlp.stream"}
    assert {depth: drawn[depth] for depth in expected} == expected
    assert len(drawn) == 5  # the embedding, and two sub-layers in each of two layers
    of_layers = measured.gradient_norm(STORED, 3)
    assert of_layers is not None
    assert norm.get_lines()[0].get_ydata() == pytest.approx(list(of_layers.values.values()))
    assert variance.get_title(loc="left") == "step 2"


def test_the_command_writes_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analysis(["card", str(STORED), "--out", str(tmp_path / "figure.png")]) == 0
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG"
        assert image.width > 2 * image.height
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text((STORED / "config.yaml").read_text())
    for arguments, fragment in (
        ([str(tmp_path / "run"), "--out", str(tmp_path / "a.png")], "no layer was measured"),
        ([str(tmp_path / "none"), "--out", str(tmp_path / "a.png")], "does not exist"),
        ([str(STORED), "--out", str(tmp_path / "none/a.png")], "cannot be written"),
    ):
        assert analysis(["card", *arguments]) == 2
        assert fragment in capsys.readouterr().err


def test_without_the_packages_of_the_analysis_there_is_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with caplog.at_level(logging.WARNING):
        assert not measured.figure(STORED, 6, tmp_path / "figure.png")
    assert caplog.messages == ["the model card has no figure, as matplotlib is not installed"]


def test_an_exported_folder_has_card_and_figure(exported: Exported) -> None:
    card: Any = ModelCard.load(exported.folder / "README.md")
    last = [json.loads(line) for line in (exported.run / "metrics.jsonl").read_text().splitlines()][-1]
    assert card.data.eval_results is not None
    results = {f"validation_{each.metric_type}": each.metric_value for each in card.data.eval_results}
    assert results == {key: value for key, value in last.items() if key.startswith("validation_")}
    (figure,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card.text)
    with Image.open(exported.folder / figure) as image:
        assert image.format == "PNG"
