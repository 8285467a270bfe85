"""`python -m train.filter MODEL GUIDANCE TARGET OUT`: what it writes is what the model returns, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modeling.joint_filter.modeling_dkn import DKNModel
from tests.train.export.test_authors import authors_file
from train.export.__main__ import main as export
from train.filter import pairs
from train.filter.__main__ import main


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, DKNModel]:
    """A folder of the authors' weights, and their network."""
    place = tmp_path_factory.mktemp("imported")
    model = authors_file(place / "weights.pth")
    model.config.purpose = {"task": "depth_upsampling", "scale": 4}
    assert export([str(place / "weights.pth"), str(place / "out"), "scale=4"]) == 0
    return str(place / "out"), model


def images(folder: Path) -> tuple[Path, Path]:
    """Write two folders of pairs: 8 and 16 bits, a small color target, and arrays."""
    generator = np.random.default_rng(0)
    guides, targets = folder / "guides", folder / "targets"
    guides.mkdir()
    targets.mkdir()
    for name in ("a.jpg", "b.png", "c.png", "d.png"):
        Image.fromarray(generator.integers(0, 256, (24, 32, 3), np.uint8)).save(guides / name)
    Image.fromarray(generator.integers(1, 256, (6, 8), np.uint8)).save(targets / "a.png")
    Image.fromarray(generator.integers(1, 65536, (6, 8), np.uint16)).save(targets / "b.png")
    np.save(targets / "c.npy", generator.uniform(1, 2, (6, 8)).astype(np.float32))
    Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8)).save(targets / "d.jpg")
    return guides, targets


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def array(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.asarray(Image.open(path))


def test_outputs_are_those_of_the_network_in_the_type_of_the_target(
    imported: tuple[str, DKNModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = imported
    guides, targets = images(tmp_path)
    assert run(folder, guides, targets, tmp_path / "out") == 0
    assert capsys.readouterr().out == f"4 filtered: {tmp_path / 'out'}\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.npy", "d.png"]
    for target, dtype in (("a.png", np.uint8), ("b.png", np.uint16), ("c.npy", np.float32), ("d.jpg", np.uint8)):
        (guide,) = guides.glob(f"{target[0]}.*")
        given: Any = np.load(targets / target) if target == "c.npy" else Image.open(targets / target)
        wanted = np.asarray(model.filter(Image.open(guide), given))
        found = array(tmp_path / "out" / target.replace("jpg", "png"))
        assert (found.dtype, found.shape[:2]) == (dtype, (24, 32))
        assert np.array_equal(found, wanted)
    assert run(folder, guides / "b.png", targets / "b.png", tmp_path / "new/one.tif", "--iterations", "2") == 0
    twice = model.filter(Image.open(guides / "b.png"), Image.open(targets / "b.png"), iterations=2)
    assert np.array_equal(array(tmp_path / "new/one.tif"), np.asarray(twice))


def test_existing_outputs_are_kept_unless_told_otherwise(
    imported: tuple[str, DKNModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guides, targets = images(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    assert run(imported[0], guides, targets, out) == 2
    assert "a.png exists; choose another OUT, or write --existing skip or --existing replace" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["a.png"]
    assert run(imported[0], guides, targets, out, "--existing", "skip") == 0
    assert (out / "a.png").read_bytes() == b"mine"
    assert run(imported[0], guides, targets, out, "--existing", "replace") == 0
    assert array(out / "a.png").shape == (24, 32)
    assert run(imported[0], guides, targets, targets, "--existing", "replace") == 2
    assert "is an input, which would be overwritten" in capsys.readouterr().err


def test_an_output_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.ones((4, 4), np.float32)
    pairs.write(image, tmp_path / "a.npy")
    before = (tmp_path / "a.npy").read_bytes()

    def cut(file: Any, _: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", cut)
    for name in ("a.npy", "b.npy"):
        with pytest.raises(OSError, match="disk full"):
            pairs.write(image, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    assert (tmp_path / "a.npy").read_bytes() == before


def test_all_faults_are_listed_before_anything_is_written(
    imported: tuple[str, DKNModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = imported[0], tmp_path / "out"
    guides, targets = images(tmp_path)
    (targets / "a.png").write_bytes(b"no image")
    Image.fromarray(np.full((48, 64), 7, np.uint8)).save(targets / "b.png")
    assert run(folder, guides, targets, out) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" and ")[0] for line in lines] == [str(guides / "a.jpg"), str(guides / "b.png")]
    assert not out.exists()
    (guides / "c.png").unlink()
    (targets / "d.npy").write_bytes((targets / "c.npy").read_bytes())
    assert run(folder, guides, targets, out) == 2
    error = capsys.readouterr().err
    assert "d.jpg and d.npy have the same name up to the suffix; remove one" in error
    assert f"{targets}: c.npy without a file of the same name, up to the suffix, in {guides}" in error


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["{folder}", "none.png", "{target}", "x.png"], "none.png: does not exist"),
        (["{folder}", "{guides}", "{target}", "x.png"], "pass two files or two folders"),
        (["{folder}", "{guide}", "{target}", "x.jpg"], "x.jpg: cannot hold the output exactly"),
        (["{folder}", "{guide}", "{target}", "x.npy"], "x.npy: the output has the type of"),
        (["{guides}", "{guide}", "{target}", "x.png"], "is no exported joint image filter"),
        (["{run}", "{guide}", "{target}", "x.png"], "is a run; export its filter first"),
        (["{folder}", "{guide}", "{target}", "x.png", "--iterations", "0"], "iterations: 0"),
    ],
)
def test_wrong_words_are_exit_2(
    words: list[str],
    fragment: str,
    imported: tuple[str, DKNModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    guides, targets = images(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    monkeypatch.chdir(tmp_path)
    places = {"folder": imported[0], "guides": guides, "guide": guides / "a.jpg", "target": targets / "a.png"}
    assert main([word.format(**places, run=tmp_path / "run") for word in words]) == 2
    assert fragment in capsys.readouterr().err
    assert not list(tmp_path.glob("x.*"))
