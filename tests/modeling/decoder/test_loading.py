"""Ways to load a saved decoder: without head, in parts, in half precision, on devices, and with old code or libraries.

test_export.py loads folders where the project is not.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, dynamic_module_utils
from transformers.utils.hub import HF_MODULES_CACHE

import modeling.decoder
from modeling.decoder import configuration_periln
from modeling.decoder.modeling_periln import PeriLNForCausalLM, PeriLNModel

from .tiny_decoder import tiny_decoder, tiny_tokens

FAMILY = Path(modeling.decoder.__file__ or "").parent
ROOT = FAMILY.parents[1]


def saved(folder: Path, **overrides: Any) -> PeriLNForCausalLM:
    model = tiny_decoder(**overrides)
    model.save_pretrained(folder)
    return model


# ------------------------------------------------------------------------------------------------------- without head


@pytest.fixture
def code_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own into which transformers copies code, and no module of it imported."""
    others = [place for place in sys.path if place != HF_MODULES_CACHE]  # of earlier tests
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", others)
    forget_code()
    yield
    forget_code()


def forget_code() -> None:
    """Forget the modules that transformers imported from folders, as a new process would."""
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.usefixtures("code_cache")
def test_auto_model_loads_the_decoder_without_head(tmp_path: Path) -> None:
    model, tokens = saved(tmp_path / "exported", embedding_norm=True), tiny_tokens()
    loaded = AutoModel.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    hidden = loaded(tokens).last_hidden_state
    torch.testing.assert_close(hidden, model.model(tokens).last_hidden_state, atol=0, rtol=0)
    assert type(loaded) is not PeriLNModel  # but that of the folder
    loaded.save_pretrained(tmp_path / "base")
    again = AutoModel.from_pretrained(tmp_path / "base", trust_remote_code=True)
    torch.testing.assert_close(again(tokens).last_hidden_state, hidden, atol=0, rtol=0)


# ------------------------------------------------------------------------------------------------ parts, types, places


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_saved_in_parts_reads_back_equal(tmp_path: Path, tied: bool) -> None:
    model = tiny_decoder(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = PeriLNForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("overrides", [{"norm_placement": "post"}, {"frozen_norm_scales": "all"}], ids=str)
def test_half_precision_by_loading_and_by_casting_agree(tmp_path: Path, overrides: dict[str, Any]) -> None:
    saved(tmp_path, **overrides)
    loaded = PeriLNForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = PeriLNForCausalLM.from_pretrained(tmp_path).bfloat16()
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    torch.testing.assert_close(loaded.state_dict(), cast.state_dict(), atol=0, rtol=0)
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    logits = loaded(tiny_tokens()).logits
    assert logits.dtype == torch.bfloat16
    exact = PeriLNForCausalLM.from_pretrained(tmp_path)(tiny_tokens()).logits
    assert (logits - exact).norm() < 0.04 * exact.norm()  # measured: 0.017; one rounding to bf16 is 0.0017


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_maps_load_the_same_decoder(tmp_path: Path, device_map: Any) -> None:
    model, tokens = saved(tmp_path), tiny_tokens()
    loaded = PeriLNForCausalLM.from_pretrained(tmp_path, device_map=device_map)
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, atol=0, rtol=0)
    output = loaded(tokens, labels=tokens, return_logits=False)
    torch.testing.assert_close(output.loss, model(tokens, labels=tokens, return_logits=False).loss, atol=0, rtol=0)


def test_layers_on_disk_compute_the_same(tmp_path: Path) -> None:
    model, tokens = saved(tmp_path / "saved"), tiny_tokens()
    places: dict[str, Any] = {name: "cpu" for name in ("model.embed_tokens", "model.norm", "model.rotary_emb")}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk", "lm_head": "disk"}
    loaded = PeriLNForCausalLM.from_pretrained(tmp_path / "saved", device_map=places, offload_folder=tmp_path / "disk")
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, atol=0, rtol=0)
        chunked = loaded(tokens, labels=tokens, return_logits=False).loss
    torch.testing.assert_close(chunked, model(tokens, labels=tokens, return_logits=False).loss, atol=0, rtol=0)


# ------------------------------------------------------------------------------------- other code under the same name


def set_generation(folder: Path, generation: int, *files: str) -> None:
    for file in files:
        path = folder / f"{file}_periln.py"
        path.write_text(path.read_text() + f"\n\nGENERATION = {generation}\n")


def generations(folder: Path) -> list[int]:
    """Load a folder's model and return the generation of its code: of its own file, and of one that it imports."""
    module = type(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)).__module__
    files = (module, module.replace("modeling_periln", "norms_periln"))
    return [getattr(sys.modules[file], "GENERATION", 1) for file in files]


@pytest.mark.usefixtures("code_cache")
def test_changed_code_under_the_same_name_is_run(tmp_path: Path) -> None:
    """transformers copies the code of a folder into a cache, which must not outlive a second export."""
    folder = tmp_path / "exported"
    saved(folder)
    assert generations(folder) == [1, 1]
    for files, expected in ((["modeling"], [2, 1]), (["norms"], [2, 2])):
        set_generation(folder, 2, *files)
        forget_code()
        assert generations(folder) == expected
    saved(folder)  # as it was at first
    forget_code()
    assert generations(folder) == [1, 1]


@pytest.mark.usefixtures("code_cache")
def test_two_folders_of_one_name_keep_their_own_code_in_a_process(tmp_path: Path) -> None:
    """As long as their configurations differ in code too, by which transformers remembers classes."""
    for place in ("a", "b"):
        saved(tmp_path / place / "exported")
    set_generation(tmp_path / "b/exported", 2, "modeling", "norms", "configuration")
    found = [generations(tmp_path / place / "exported") for place in "aba"]
    assert found == [[1, 1], [2, 2], [1, 1]]


# ------------------------------------------------------------------------------------------------- older transformers

IN_OLDER_TRANSFORMERS = """
import sys, types
old = types.ModuleType("transformers")
old.__version__ = sys.argv[1]  # without PreTrainedConfig, as transformers 4
sys.modules["transformers"] = old
sys.path.insert(0, "..")
import exported.configuration_periln
"""


@pytest.mark.parametrize("version", ["4.57.6", "4.9", "5.0.0rc1", "5.22.2"])
def test_older_transformers_are_refused_in_a_sentence(tmp_path: Path, version: str) -> None:
    saved(tmp_path / "exported")
    (tmp_path / "exported/__init__.py").touch()
    command = [sys.executable, "-c", IN_OLDER_TRANSFORMERS, version]
    done = subprocess.run(command, cwd=tmp_path / "exported", capture_output=True, text=True, check=False)
    required = ".".join(map(str, configuration_periln.REQUIRED_TRANSFORMERS))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: this model needs transformers {required} or later, and {version} is installed: "
        f"pip install 'transformers>={required}'"
    )


@pytest.mark.parametrize("version", ["5.23.0", "5.23.0.dev0", "5.100", "6.0"])
def test_newer_transformers_are_not_refused(version: str) -> None:
    configuration_periln._refuse_older_transformers(version)


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [each for each in project["dependencies"] if each.startswith("transformers")]
    required = ".".join(map(str, configuration_periln.REQUIRED_TRANSFORMERS))
    assert wanted.startswith(f"transformers>={required},")


def siblings(name: str) -> set[str]:
    tree = ast.parse((FAMILY / f"{name}.py").read_text())
    return {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}


def test_the_configuration_imports_by_itself_whatever_it_needs() -> None:
    """transformers 4 copies no other file, and would fail for want of one before the version is read."""
    found, waiting = set[str](), {"configuration_periln"}
    while waiting:
        found |= waiting
        waiting = set[str]().union(*map(siblings, waiting)) - found
    assert siblings("configuration_periln") == found - {"configuration_periln"}


def test_the_auto_classes_are_those_of_the_folder(tmp_path: Path) -> None:
    saved(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == f"modeling_periln.{PeriLNModel.__name__}"
    assert {AutoModel.__name__, AutoModelForCausalLM.__name__, "AutoConfig"} == set(auto_map)
