"""The import rule (docs/decisions/0001-packages-and-imports.md), checked against the sources."""

from __future__ import annotations

import ast
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("launch", "train", "modeling", "analysis")
# modeling/<family>/facts_*.py: standard library only, so that programs without torch read them
FACTS = {f"modeling.{path.parent.name}.{path.stem}" for path in (ROOT / "modeling").glob("*/facts_*.py")}
MAY_IMPORT = {
    "launch": {"train.config"} | FACTS,
    "train": {"train", "modeling", "analysis"},
    "modeling": set(),
    "analysis": {"analysis"} | FACTS,
}
# third-party package -> the places that may import it
FENCES = {
    "deepspeed": ("train/engine/",),
    "transformers": ("modeling/", "train/export/", "train/evaluate/", "train/data/text/", "analysis/"),
    "datasets": ("train/data/",),
    "accelerate": ("analysis/", "train/__main__.py", "train/export/streaming.py"),
    "matplotlib": ("analysis/",),
    "pandas": ("analysis/",),
    "cv2": ("train/data/",),
    "h5py": ("train/data/images/nyu.py",),
}
NO_TORCH = ("launch/", "train/config/")
MOST_BOXES = 15  # files and folders of a folder, without __init__.py; train/ has a folder per command beside its own
SELF_CONTAINED = sys.stdlib_module_names | {"torch", "transformers", "huggingface_hub"}
# Beyond SELF_CONTAINED: transformers opens images too, but only as 8-bit RGB, which neither 16-bit depth nor a palette
# survives.
ALSO = {
    "PIL": {
        "modeling/joint_filter/images_dkn.py",
        "modeling/segmentation/images_bap.py",
        "modeling/segmentation/modeling_bap.py",
    },
    "numpy": {"modeling/joint_filter/images_dkn.py", "modeling/segmentation/images_bap.py"},
}


def imports(source: str, module: str) -> Iterator[tuple[str, int]]:
    """Yield every imported module's full name and its line, wherever in the file it stands."""
    package = module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def faults(path: str, source: str) -> list[str]:
    """Return what a file imports against the rules."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    home = module.split(".")[0]
    found = []
    for name, line in imports(source, module):
        top = name.split(".")[0]
        where = f"{path}:{line} imports {name}"
        if top == "tests" and home != "tests":
            found.append(where)
        if top in OURS and top != home and home in OURS and not _allowed(name, MAY_IMPORT[home]):
            found.append(where)
        if home == "modeling" and top == "modeling" and name.split(".")[:2] != module.split(".")[:2]:
            found.append(where)
        if home == "modeling" and top not in SELF_CONTAINED | {"modeling"} and path not in ALSO.get(top, ()):
            found.append(where)
        if home == "modeling" and name == module.rpartition(".")[0]:  # `from . import x` breaks an exported folder
            found.append(where)
        if module in FACTS and top not in sys.stdlib_module_names and not _allowed(name, FACTS):
            found.append(where)
        if home == "train" and name.startswith("analysis.") and not name.startswith("analysis.measure"):
            found.append(where)
        if top in FENCES and home in OURS and not path.startswith(FENCES[top]):
            found.append(where)
        if top == "torch" and path.startswith(NO_TORCH):
            found.append(where)
    return found


def _allowed(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed) or any(a.startswith(name + ".") for a in allowed)


def sources() -> list[str]:
    return [str(p.relative_to(ROOT)) for package in (*OURS, "tests") for p in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", sources())
def test_imports_keep_the_rule(path: str) -> None:
    assert not faults(path, (ROOT / path).read_text())


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("launch/plan/plan.py", "import torch"),
        ("launch/plan/plan.py", "from train.engine.engine import wrap"),
        ("train/loop.py", "import deepspeed"),
        ("train/loop.py", "def f():\n    from transformers import AutoModel"),
        ("train/observe/run_log.py", "from analysis.report.report import page"),
        ("modeling/decoder/modeling_periln.py", "from train.config.run import load"),
        ("modeling/decoder/modeling_periln.py", "from modeling.joint_filter import modeling_dkn"),
        ("modeling/decoder/modeling_periln.py", "import einops"),
        ("modeling/joint_filter/modeling_dkn.py", "from PIL import Image"),
        ("modeling/decoder/modeling_periln.py", "from . import configuration_periln"),
        ("modeling/decoder/modeling_periln.py", "if TYPE_CHECKING:\n    import deepspeed"),
        ("analysis/runs.py", "from modeling.decoder import modeling_periln"),
        ("launch/plan/decoder.py", "from modeling.decoder.configuration_periln import PeriLNConfig"),
        ("modeling/decoder/facts_periln.py", "import torch"),
        ("modeling/decoder/facts_periln.py", "from .configuration_periln import PeriLNConfig"),
        ("train/loop.py", "from tests.tiny import tiny_run"),
    ],
)
def test_the_check_finds_a_breach(path: str, source: str) -> None:
    assert faults(path, source)


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Return what each module of ours imports of ours, imports inside functions and under TYPE_CHECKING included."""
    modules = {p.removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in sources()}
    return {
        module: {name for name, _ in imports((ROOT / path).read_text(), module) if name in modules and name != module}
        for module, path in modules.items()
    }


def test_there_is_no_import_cycle() -> None:
    assert not cycle(import_graph())


def rooms(graph: Mapping[str, set[str]]) -> dict[str, dict[str, set[str]]]:
    """Return the boxes of every folder, files and folders, each with the boxes of the same folder that it imports."""
    found: dict[str, dict[str, set[str]]] = {}
    for module, imported in graph.items():
        parts = module.split(".")
        for depth in range(1, len(parts)):
            folder, box = ".".join(parts[:depth]), parts[depth]
            inside = {name.split(".")[depth] for name in imported if name.startswith(f"{folder}.")}
            found.setdefault(folder, {}).setdefault(box, set()).update(inside - {box})
    return found


ROOMS = rooms({module: names for module, names in import_graph().items() if module.split(".")[0] in OURS})


@pytest.mark.parametrize("folder", ROOMS)
def test_the_boxes_of_a_folder_stand_on_floors(folder: str) -> None:
    """No two rooms need each other, not even by way of a third."""
    assert not cycle(ROOMS[folder])


@pytest.mark.parametrize("folder", ROOMS)
def test_a_folder_has_few_boxes(folder: str) -> None:
    assert len(ROOMS[folder]) <= MOST_BOXES, sorted(ROOMS[folder])


def test_rooms_that_need_each_other_are_found() -> None:
    graph = {"a.x.one": {"a.y.two"}, "a.y.three": {"a.x.four"}, "a.y.two": set[str](), "a.x.four": set[str]()}
    assert not cycle(graph)
    assert cycle(rooms(graph)["a"])


def test_nothing_that_the_configuration_imports_imports_torch() -> None:
    graph = import_graph()
    reached, waiting = set[str](), ["train.config.load"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += graph[module] - reached
    assert "train.config.rules" in reached
    for module in {name for name in reached if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()}:
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        assert not {name for name, _ in imports(source, module) if name.split(".")[0] in {"torch", *FENCES}}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return one cycle of a graph, empty where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node not in done:
            for following in sorted(graph[node]):
                if found := visit(following, [*path, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in graph if (found := visit(node, []))), [])


def test_the_cycle_check_finds_a_cycle() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()})
    assert not cycle({"a": {"b"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("package", OURS)
def test_packages_are_those_of_this_checkout(package: str) -> None:
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).is_relative_to(ROOT)


def test_configs_hold_values_only() -> None:
    assert {path.suffix for path in (ROOT / "configs").rglob("*") if path.is_file()} == {".yaml"}
