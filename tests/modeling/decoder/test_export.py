"""A saved decoder stands on its own: any process with torch and transformers loads it."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import modeling.decoder
from modeling.decoder.facts_periln import DecoderShape
from modeling.decoder.facts_placements_periln import CHOICES
from modeling.decoder.modeling_periln import PeriLNForCausalLM

from .tiny_decoder import tiny_decoder, tiny_tokens

FAMILY = Path(modeling.decoder.__file__ or "").parent
ALLOWED = {"torch", "transformers"} | set(sys.stdlib_module_names)

LOADS_ELSEWHERE = """
import importlib.util, sys
assert importlib.util.find_spec("modeling") is None, "the project can be seen"
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.from_pretrained("exported", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("exported", trust_remote_code=True)
tokens = load_file("tokens.safetensors")["tokens"]
loss = model(tokens, labels=tokens).loss.detach()
generated = model.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
model.save_pretrained("again")
save_file({"logits": model(tokens).logits.detach(), "loss": loss, "generated": generated}, "found.safetensors")
"""

LOAD_MANY = """
import importlib.util, pathlib
assert importlib.util.find_spec("modeling") is None, "the project can be seen"
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
tokens = load_file("tokens.safetensors")["tokens"]
found = {}
for folder in sorted(pathlib.Path("exported").iterdir()):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    found[folder.name] = model(tokens).logits.detach()
save_file(found, "found.safetensors")
"""


@pytest.mark.parametrize("file", sorted(FAMILY.glob("*.py")), ids=lambda file: file.name)
def test_a_family_imports_only_what_every_environment_has(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED, ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] in ALLOWED, ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.level > 0:  # save_pretrained copies `from .sibling import Name`
            assert node.level == 1, ast.unparse(node)
            assert (FAMILY / f"{node.module}.py").exists(), ast.unparse(node)


def run_elsewhere(code: str, folder: Path) -> None:
    """Run code in a process that cannot see the project."""
    environment = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-I", "-W", "error::UserWarning", "-c", code]
    subprocess.run(command, cwd=folder, env=environment, check=True)


@pytest.mark.parametrize(
    "overrides",
    [
        {"norm_placement": ("pre", "peri", "post"), "z_loss_coefficient": 0.01},
        {"tie_word_embeddings": True, "frozen_norm_scales": "all", "qk_norm": "head", "embedding_norm": True},
    ],
    ids=["mix", "tied and frozen"],
)
def test_a_saved_decoder_loads_where_the_project_is_not(tmp_path: Path, overrides: dict[str, Any]) -> None:
    model: Any = tiny_decoder(**overrides)  # pyright cannot see `generate`
    tokens = tiny_tokens()
    model.save_pretrained(tmp_path / "exported")
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    run_elsewhere(LOADS_ELSEWHERE, tmp_path)
    found = load_file(tmp_path / "found.safetensors")
    torch.testing.assert_close(found["logits"], model(tokens).logits, atol=1e-6, rtol=0)  # measured: 0
    torch.testing.assert_close(found["loss"], model(tokens, labels=tokens).loss.detach(), atol=0, rtol=1e-6)
    generated = model.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert (found["generated"] == generated).all()
    again = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert again == sorted(path.name for path in (tmp_path / "exported").iterdir())


MODELS: dict[str, dict[str, Any]] = {name: {"norm_placement": name} for name in CHOICES} | {
    "switched keel": {"norm_placement": "keel", "gpas": True, "attention_gate": "head", "residual_factor": 0.5},
    "switched hybrid": {"norm_placement": "hybrid", "gpas": True, "attention_gate": "element"},
    "switched sub": {"norm_placement": "sub", "norm_kind": "dyt", "norm_eps": 1e-6, "dyt_alpha": 0.25, "gpas": True},
}


def test_every_placement_loads_where_the_project_is_not(tmp_path: Path) -> None:
    tokens = tiny_tokens()
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    expected: dict[str, torch.Tensor] = {}
    for name, overrides in MODELS.items():
        model = tiny_decoder(num_hidden_layers=4, **overrides)
        model.save_pretrained(tmp_path / "exported" / name.replace(" ", "_"))
        expected[name.replace(" ", "_")] = model(tokens).logits.detach()
    run_elsewhere(LOAD_MANY, tmp_path)
    torch.testing.assert_close(load_file(tmp_path / "found.safetensors"), expected, atol=1e-6, rtol=0)


def test_a_folder_from_before_the_switches_loads_with_their_defaults(tmp_path: Path) -> None:
    model = tiny_decoder(norm_placement="peri")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    new = {"residual_factor", "gpas", "attention_gate", "dyt_alpha"}
    assert new <= config.keys()
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in new}))
    loaded = PeriLNForCausalLM.from_pretrained(tmp_path)
    assert {key: getattr(loaded.config, key) for key in new} == {key: getattr(DecoderShape, key) for key in new}
    torch.testing.assert_close(loaded(tiny_tokens()).logits, model(tiny_tokens()).logits, atol=0, rtol=0)


def test_an_exported_folder_names_its_code(tmp_path: Path) -> None:
    tiny_decoder().save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.glob("*.py")} == {file.name for file in FAMILY.glob("*_periln.py")}
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_periln.PeriLNConfig",
        "AutoModel": "modeling_periln.PeriLNModel",
        "AutoModelForCausalLM": "modeling_periln.PeriLNForCausalLM",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_decoder_reads_back_bit_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    model: Any = tiny_decoder(frozen_norm_scales="output")
    model.to(dtype)
    model.save_pretrained(tmp_path)
    loaded = PeriLNForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert loaded.num_parameters() == model.num_parameters()
