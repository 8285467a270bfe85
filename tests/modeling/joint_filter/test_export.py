"""A saved filter stands on its own: any process with torch, transformers and Pillow loads it, in two lines."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling.joint_filter import configuration_dkn
from modeling.joint_filter.image_processing_dkn import DKNImageProcessor
from modeling.joint_filter.modeling_dkn import DKNModel

from .plain_filter import random_filter, random_pair

REQUIRED = ".".join(map(str, configuration_dkn.REQUIRED_TRANSFORMERS))
FILES = {
    "configuration_dkn.py",
    "facts_dkn.py",
    "holes_dkn.py",
    "image_processing_dkn.py",
    "images_dkn.py",
    "kernels_dkn.py",
    "modeling_dkn.py",
    "purpose_dkn.py",
    "sampling_dkn.py",
    "tiles_dkn.py",
}

LOADS_ELSEWHERE = """
import importlib.util
assert importlib.util.find_spec("modeling") is None, "the project can be seen"
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel
assert AutoConfig.from_pretrained("exported", trust_remote_code=True).model_type == "dkn"

model = AutoModel.from_pretrained("exported", trust_remote_code=True)
sharp = model.filter(Image.open("guidance.png"), Image.open("target.png"))
sharp.save("sharp.png")

processor = AutoImageProcessor.from_pretrained("exported", trust_remote_code=True)
inputs = processor("guidance.png", "target.png")
with torch.no_grad():
    found = model(**inputs)
model.save_pretrained("again")
save_file({name: tensor.contiguous() for name, tensor in found.items()}, "found.safetensors")
"""


@pytest.mark.parametrize("fields", [{}, {"architecture": "dkn", "residual": False, "sampling": "compat"}], ids=str)
def test_a_saved_filter_loads_where_the_project_is_not(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = random_filter(**fields, purpose={"task": "depth_upsampling", "scale": 3})
    guidance, target = random_pair(22, 27)
    Image.fromarray((255 * guidance[0]).byte().movedim(0, -1).numpy()).save(tmp_path / "guidance.png")
    target[..., 6:12, 9:15] = 0  # values, as the folder's processor says
    Image.fromarray((60_000 * target[0, 0, ::3, ::3]).to(torch.uint16).numpy()).save(tmp_path / "target.png")
    model.save_pretrained(tmp_path / "exported")
    processor = DKNImageProcessor(invalid="none")
    processor.save_pretrained(tmp_path / "exported")
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-I", "-W", "error::UserWarning", "-c", LOADS_ELSEWHERE],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    pair = tmp_path / "guidance.png", tmp_path / "target.png"
    with torch.no_grad():
        expected = model(**processor(*pair))
    for name, tensor in load_file(tmp_path / "found.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0)
    sharp = Image.open(tmp_path / "sharp.png")
    assert (sharp.size, sharp.mode) == ((27, 22), "I;16")
    assert sharp.tobytes() == model.filter(*pair, processor=processor).tobytes()
    assert sharp.tobytes() != model.filter(*pair).tobytes()
    again = {path.name for path in (tmp_path / "again").iterdir()}
    assert again == {path.name for path in (tmp_path / "exported").iterdir()}
    said = [json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("exported", "again")]
    assert [each["invalid"] for each in said] == ["none", "none"]


def test_an_exported_folder_names_its_code(tmp_path: Path) -> None:
    random_filter().save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.glob("*.py")} == FILES
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_dkn.DKNConfig",
        "AutoModel": "modeling_dkn.DKNModel",
    }
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["auto_map"] == {
        "AutoImageProcessor": "image_processing_dkn.DKNImageProcessor",
    }


IN_OLDER_TRANSFORMERS = """
import sys, types
old = types.ModuleType("transformers")
old.__version__ = sys.argv[1]  # without PreTrainedConfig, as transformers 4
sys.modules["transformers"] = old
import exported.configuration_dkn
"""


@pytest.mark.parametrize("version", ["4.57.6", "5.22.2"])
def test_older_transformers_are_refused_in_a_sentence(tmp_path: Path, version: str) -> None:
    random_filter().save_pretrained(tmp_path / "exported")
    (tmp_path / "exported/__init__.py").touch()
    command = [sys.executable, "-c", IN_OLDER_TRANSFORMERS, version]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: this model needs transformers {REQUIRED} or later, and {version} is installed: "
        f"pip install 'transformers>={REQUIRED}'"
    )


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (wanted,) = [each for each in project["dependencies"] if each.startswith("transformers")]
    assert wanted.startswith(f"transformers>={REQUIRED},")


def test_the_files_that_another_imports_are_imported_by_the_first() -> None:
    """transformers 4 copies only those that the configuration and the image processor import themselves."""
    family = Path(configuration_dkn.__file__).parent
    for first in ("configuration_dkn", "image_processing_dkn"):
        own = siblings(family / f"{first}.py")
        assert all(siblings(family / f"{name}.py") <= own for name in own)


def siblings(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1}


@pytest.mark.parametrize("architecture", ["fdkn", "dkn"])
def test_a_saved_filter_reads_back_bit_equal(tmp_path: Path, architecture: str) -> None:
    model = random_filter(architecture=architecture)
    model.save_pretrained(tmp_path)
    loaded = DKNModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)


def test_what_a_file_lacks_is_drawn_as_torch_draws_it(tmp_path: Path) -> None:
    """BatchNorm's statistics in the file survive a missing counter, and a missing layer is not left uninitialized."""
    model = random_filter()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lacking = ("stages.0.norm.num_batches_tracked", "target_branch.weight_head.weight")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(lacking)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = DKNModel.from_pretrained(tmp_path).state_dict()
    assert all((loaded[name] == tensor).all() for name, tensor in kept.items())
    drawn = loaded["kernels.target_branch.weight_head.weight"]
    assert 0 < drawn.abs().max() <= 128**-0.5
