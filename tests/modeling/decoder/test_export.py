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
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, "-I", "-W", "error::UserWarning", "-c", LOADS_ELSEWHERE],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    found = load_file(tmp_path / "found.safetensors")
    torch.testing.assert_close(found["logits"], model(tokens).logits, atol=1e-6, rtol=0)  # measured: 0
    torch.testing.assert_close(found["loss"], model(tokens, labels=tokens).loss.detach(), atol=0, rtol=1e-6)
    generated = model.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert (found["generated"] == generated).all()
    again = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert again == sorted(path.name for path in (tmp_path / "exported").iterdir())


def test_an_exported_folder_names_its_code(tmp_path: Path) -> None:
    tiny_decoder().save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.glob("*.py")} == {file.name for file in FAMILY.glob("*_periln.py")}
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_periln.PeriLNConfig",
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
