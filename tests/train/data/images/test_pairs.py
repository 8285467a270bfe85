"""Pairs of images from every kind of place, and what a user is told who names one wrongly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from train.config.errors import ConfigError
from train.config.tasks.joint_filter import PairSourceConfig
from train.data.drawn.draws import Draws
from train.data.images import image_files, nyu, pair_folder
from train.data.images.pairs import Pair, Pairs, open_pairs
from train.data.images.validation_sets import by_label, labels

VISION = Path(__file__).parents[5] / "shared/data/vision"
HERE = "task.data.sources"


def opened(path: Path | str, **keys: Any) -> Pairs:
    return open_pairs([PairSourceConfig(path=str(path), **keys)], path=HERE)


def faults(path: Path | str, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        opened(path, **keys)
    return caught.value.faults


def save(values: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, values)
    elif file.suffix == ".npz":
        np.savez_compressed(file, values)
    else:
        Image.fromarray(values).save(file)


def colour(number: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return (Draws(1, number).unit((*size, 3)) * 256).astype(np.uint8)


def depth(number: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return (1 + 9 * Draws(2, number).unit(size)).astype(np.float32)


def assert_well_formed(pair: Pair) -> None:
    assert (pair.guidance.dtype, pair.target.dtype, pair.valid.dtype) == (np.float32, np.float32, bool)
    assert pair.guidance.shape[:2] == pair.target.shape[:2] == pair.valid.shape
    assert pair.guidance.shape[2] == 3
    assert pair.guidance.min() >= 0
    assert pair.guidance.max() <= 1
    assert np.isfinite(pair.target).all()


# ------------------------------------------------------------------------------------------------ folders: what is read


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (depth(0).astype(np.uint8), ".png"),
        ((1000 * depth(0)).astype(np.uint16), ".png"),
        ((1000 * depth(0)).astype(np.uint16), ".tif"),
        (depth(0), ".tif"),
        (depth(0), ".pfm"),
        (depth(0), ".npy"),
        (depth(0).astype(np.float64), ".npy"),
        (depth(0).astype(np.int64), ".npy"),
        (depth(0)[:, :, None], ".npy"),
        (depth(0), ".npz"),
    ],
)
def test_a_map_keeps_the_values_of_its_file(values: np.ndarray, suffix: str, tmp_path: Path) -> None:
    save(colour(0), tmp_path / "RGB/a.png")
    save(values, tmp_path / f"Depth/a{suffix}")
    pairs = opened(tmp_path, units_per_value=100.0)
    pair = pairs.read(0)
    assert_well_formed(pair)
    assert np.array_equal(pair.target, values.astype(np.float32).reshape(6, 8, 1))
    assert np.array_equal(pair.guidance, colour(0).astype(np.float32) / 255)
    assert pair.valid.all()
    assert (pairs.size(0), pairs.channels(0), pairs.name(0), pair.units_per_value) == ((6, 8), 1, "a", 100.0)


@pytest.mark.parametrize(
    ("values", "suffix", "shown"),
    [
        (colour(0), ".npy", colour(0) / 255),
        ((colour(0) / 255).astype(np.float32), ".npz", colour(0) / 255),
        (colour(0)[:, :, 0], ".png", np.repeat(colour(0)[:, :, :1], 3, axis=2) / 255),
        (colour(0)[:, :, 0] * np.uint16(257), ".png", np.repeat(colour(0)[:, :, :1], 3, axis=2) / 255),
        (np.dstack([colour(0), colour(1)[:, :, 0]]), ".png", colour(0) / 255),
    ],
)
def test_guidance_is_colour_from_0_to_1(values: np.ndarray, suffix: str, shown: np.ndarray, tmp_path: Path) -> None:
    save(values, tmp_path / f"RGB/a{suffix}")
    save(depth(0), tmp_path / "Depth/a.npy")
    pair = opened(tmp_path).read(0)
    assert_well_formed(pair)
    assert np.abs(pair.guidance - shown).max() < 1e-6


def test_a_target_of_colour_is_read_like_a_guidance(tmp_path: Path) -> None:
    save(colour(0), tmp_path / "textured/a.png")
    save(colour(1), tmp_path / "clean/a.png")
    pairs = opened(tmp_path)
    pair = pairs.read(0)
    assert_well_formed(pair)
    assert np.array_equal(pair.target, colour(1).astype(np.float32) / 255)
    assert pairs.channels(0) == 3
    assert pair.valid.all()  # black is a colour, not a hole


def test_holes_are_the_missing_value_and_what_is_not_finite(tmp_path: Path) -> None:
    values = depth(0)
    values[0, :3] = [0, np.nan, np.inf]
    save(colour(0), tmp_path / "RGB/a.png")
    save(values, tmp_path / "Depth/a.npy")
    pair = opened(tmp_path).read(0)
    assert_well_formed(pair)
    assert pair.valid.sum() == 45
    assert not pair.valid[0, :3].any()
    assert opened(tmp_path, missing=None).read(0).valid.sum() == 46
    assert opened(tmp_path, missing=float(values[5, 5])).read(0).valid[5, 5] == np.False_


# ----------------------------------------------------------------------------------------------- folders: what is found


@pytest.mark.parametrize(
    ("guidance", "target"),
    [
        ("RGB/{}.png", "Depth/{}.npy"),
        ("color/img_{}.png", "disp/disp_{}.npy"),
        ("{}_color.png", "{}_depth.npy"),
        ("Scene_{}_output_color.png", "Scene_{}_output_depth.npy"),
        ("rgb{}.png", "gt{}.npy"),
    ],
)
def test_the_usual_names_are_found_and_paired(guidance: str, target: str, tmp_path: Path) -> None:
    for number in (2, 0, 1):
        save(colour(number), tmp_path / guidance.format(number))
        save(depth(number), tmp_path / target.format(number))
    pairs = opened(tmp_path)
    assert len(pairs) == 3
    assert [pairs.name(i).removeprefix("Scene_") for i in range(3)] == ["0", "1", "2"]
    for number in range(3):
        assert np.array_equal(pairs.read(number).target[:, :, 0], depth(number))
        assert np.array_equal(pairs.read(number).guidance, colour(number).astype(np.float32) / 255)


def test_patterns_reach_through_scenes(tmp_path: Path) -> None:
    for scene in ("room", "garden"):
        save(colour(0), tmp_path / scene / "image_2/0001.png")
        save(depth(0), tmp_path / scene / "gt_2/0001_depth.npy")
    pairs = opened(tmp_path, guidance="*/image_2/*.png", target="*/gt_2/*.npy")
    assert [pairs.name(i) for i in range(2)] == ["garden/2/0001", "room/2/0001"]


def test_one_file_on_each_side_is_a_pair_whatever_their_names(tmp_path: Path) -> None:
    save(colour(0), tmp_path / "photo.png")
    save(depth(0), tmp_path / "laser.npy")
    assert opened(tmp_path, guidance="photo.png", target="laser.npy").name(0) == "photo"


def test_start_and_stop_cut_as_a_slice_does(tmp_path: Path) -> None:
    for number in range(5):
        save(colour(number), tmp_path / f"RGB/{number}.png")
        save(depth(number), tmp_path / f"Depth/{number}.npy")

    def names(**keys: int) -> str:
        pairs = opened(tmp_path, **keys)
        return "".join(pairs.name(i) for i in range(len(pairs)))

    assert (names(stop=2), names(start=3), names(start=-2), names(start=1, stop=-1)) == ("01", "34", "34", "123")


# -------------------------------------------------------------------------------------------------------- wrong folders


def two_pairs(folder: Path) -> None:
    for number in range(2):
        save(colour(number), folder / f"RGB/{number}.png")
        save(depth(number), folder / f"Depth/{number}.npy")


def recoloured(folder: Path, values: np.ndarray) -> None:
    """Give the second pair another guidance, an array."""
    (folder / "RGB/1.png").unlink()
    save(values, folder / "RGB/1.npy")


BROKEN: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "gone": (
        shutil.rmtree,
        {},
        "does not exist; use one of procedural-scenes, procedural-textures, procedural-objects,",
    ),
    "empty": (lambda f: [shutil.rmtree(f / "RGB")], {}, "contains neither two folders with names like RGB and Depth"),
    "alone": (
        lambda f: (f / "Depth/1.npy").unlink(),
        {},
        "RGB/1.png has no target (2 files of guidance, 1 of target)",
    ),
    "size": (lambda f: save(depth(1, (6, 9)), f / "Depth/1.npy"), {}, "has 6 x 8 pixels and 1.npy 6 x 9"),
    "shape": (lambda f: save(np.zeros((2, 6, 8)), f / "Depth/1.npy"), {}, "contains an array of shape (2, 6, 8)"),
    "type": (lambda f: save(np.full((6, 8), "a"), f / "Depth/1.npy"), {}, "contains an array of <U1"),
    "complex": (lambda f: save(np.zeros((6, 8), complex), f / "Depth/1.npy"), {}, "an image must be numeric"),
    "int64 colour": (
        lambda f: recoloured(f, colour(1).astype(np.int64)),
        {},
        "RGB/1.npy contains colors as int64, whose white level is unknown; save uint8, uint16, or floats from 0 to 1",
    ),
    "int32 grey": (lambda f: recoloured(f, colour(1)[:, :, 0].astype(np.int32)), {}, "contains colors as int32"),
    "int64 target in colour": (
        lambda f: save(colour(1).astype(int), f / "Depth/1.npy"),
        {},
        "Depth/1.npy contains colors",
    ),
    "no image": (lambda f: (f / "RGB/1.png").write_text("not"), {}, "RGB/1.png is not an image that PIL recognizes"),
    "no array": (lambda f: (f / "Depth/1.npy").write_text("not"), {}, "Depth/1.npy cannot be read"),
    "twice": (lambda f: save(depth(1), f / "Depth/1_gt.npy"), {}, "Depth/1.npy and Depth/1_gt.npy belong to"),
    "slice": (lambda f: None, {"start": 2}, f"{HERE}.0.start: 2 to stop None selects none of the 2 pairs"),
    "zero": (lambda f: None, {"stop": 0}, "0 to stop 0 selects none of the 2 pairs"),
    "split": (lambda f: None, {"split": "test"}, f"{HERE}.0.split: has no effect on a folder of pairs; remove it"),
    "sized": (lambda f: None, {"size": (6, 8)}, f"{HERE}.0.size: has no effect on a folder of pairs; remove it"),
    "half": (lambda f: None, {"guidance": "RGB/*.png"}, f"{HERE}.0.target: missing although {HERE}.0.guidance is set"),
    "pattern": (lambda f: None, {"guidance": "RGB/*.jpg", "target": "Depth/*"}, "'RGB/*.jpg' matches no image below"),
    "absolute": (lambda f: None, {"guidance": "/RGB/*", "target": "Depth/*"}, "'/RGB/*' matches no image below"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_folder_is_told(case: str, tmp_path: Path) -> None:
    broken, keys, sentence = BROKEN[case]
    two_pairs(tmp_path / "set")
    broken(tmp_path / "set")
    [told] = faults(tmp_path / "set", **keys)
    assert told.startswith(f"{HERE}.0.")
    assert sentence in told


def test_a_file_with_several_arrays_is_refused(tmp_path: Path) -> None:
    two_pairs(tmp_path)
    (tmp_path / "Depth/1.npy").unlink()
    np.savez(tmp_path / "Depth/1.npz", a=depth(1), b=depth(1))
    [told] = faults(tmp_path)
    assert "contains 2 arrays (a.npy, b.npy); use a file with one" in told


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    two_pairs(tmp_path)
    np.save(tmp_path / "Depth/1.npy", np.full((6, 8), None), allow_pickle=True)
    [told] = faults(tmp_path)
    assert "contains an array of object" in told


def test_all_faults_of_all_sources_are_told_at_once(tmp_path: Path) -> None:
    two_pairs(tmp_path)
    save(depth(1, (6, 9)), tmp_path / "Depth/1.npy")
    sources = [
        PairSourceConfig(path=str(tmp_path), split="test"),
        PairSourceConfig(path="procedural-scenes", start=-1, missing=None, size=(4, 400)),
        PairSourceConfig(path="procedural-textures", start=3, stop=3, guidance="*.png"),
        PairSourceConfig(path=str(tmp_path / "RGB/0.png")),
    ]
    with pytest.raises(ConfigError) as caught:
        open_pairs(sources, path=HERE)
    told = [fault.removeprefix(f"{HERE}.").split(":")[0] for fault in caught.value.faults]
    assert told == ["0.split", "0.path", "1.missing", "1.start", "1.stop", "1.size", "2.guidance", "2.stop", "3.path"]


def test_a_file_that_is_damaged_within_is_told_when_it_is_read(tmp_path: Path) -> None:
    two_pairs(tmp_path)
    file = tmp_path / "RGB/1.png"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(ConfigError, match=r"RGB/1.png: cannot be read \("):
        opened(tmp_path).read(1)
    save(colour(1).astype(np.float32), tmp_path / "RGB/1.npy")
    file.unlink()
    with pytest.raises(ConfigError, match=r"contains colors from [0-9] to 25[0-9]; save them from 0 to 1, or as 8-bit"):
        opened(tmp_path).read(1)


# --------------------------------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_tells_content_and_settings_but_not_the_place(tmp_path: Path) -> None:
    two_pairs(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    known = opened(tmp_path / "a").fingerprint
    assert opened(tmp_path / "b").fingerprint == known
    others = [
        opened(tmp_path / "a", missing=None).fingerprint,
        opened(tmp_path / "a", units_per_value=100.0).fingerprint,
        opened(tmp_path / "a", stop=1).fingerprint,
        opened(tmp_path / "a", start=1).fingerprint,
    ]
    changed = colour(1)
    changed[3, 3, 1] ^= 1
    save(changed, tmp_path / "b/RGB/1.png")
    others.append(opened(tmp_path / "b").fingerprint)
    assert len({known, *others}) == 6


def test_a_fingerprint_of_procedural_images_tells_their_numbers_and_size() -> None:
    given = [{"stop": 3}, {"stop": 4}, {"start": 1, "stop": 4}, {"stop": 3, "size": (64, 64)}]
    kinds = ("procedural-scenes", "procedural-textures")
    assert len({opened(kind, **keys).fingerprint for kind in kinds for keys in given}) == 8
    assert opened(kinds[0], stop=3).fingerprint == opened(kinds[0], start=0, stop=3, size=(192, 256)).fingerprint


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    mat(tmp_path / "a.mat", 12)
    sources = [
        PairSourceConfig(path=str(tmp_path / "a.mat"), split="training"),
        PairSourceConfig(path="procedural-scenes", stop=6, size=(16, 16)),
    ]
    pairs = open_pairs(sources, path=HERE)
    alone = [pairs.read(i) for i in range(18)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(pairs.read, range(18)))
    for one, two in zip(alone, together, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one[1:4], two[1:4], strict=True))


# ------------------------------------------------------------------------------------------------------------- NYU v2


def mat(file: Path, count: int) -> None:
    with h5py.File(file, "w") as target:
        target["images"] = np.stack([colour(i).transpose(2, 1, 0) for i in range(count)])
        target["depths"] = np.stack([depth(i).T for i in range(count)])


def test_the_labelled_file_is_turned_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nyu, "TRAINING_FRAMES", 3)
    mat(tmp_path / "nyu_depth_v2_labeled.mat", 5)
    training, test = (opened(tmp_path / "nyu_depth_v2_labeled.mat", split=split) for split in ("training", "test"))
    assert ([training.name(i) for i in range(3)], len(training), len(test)) == (
        ["nyu-0000", "nyu-0001", "nyu-0002"],
        3,
        2,
    )
    pair = test.read(1)
    assert_well_formed(pair)
    assert (test.size(1), test.channels(1), test.name(1)) == ((6, 8), 1, "nyu-0004")
    assert np.array_equal(pair.guidance, colour(4).astype(np.float32) / 255)
    assert np.array_equal(pair.target[:, :, 0], depth(4))
    assert opened(tmp_path / "nyu_depth_v2_labeled.mat", split="test", start=1).fingerprint != test.fingerprint


def test_what_is_wrong_with_a_labelled_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    mat(file, 2)
    assert f"{HERE}.0.split: missing; nyu_depth_v2_labeled.mat has two splits" in faults(file)[0]
    assert "0 to stop None selects none of the 0 pairs" in faults(file, split="test")[0]
    assert [f.split(":")[0][-4:] for f in faults(file, size=(6, 8), target="*")] == ["rget", "size", "plit"]
    file.write_bytes(b"MATLAB 5.0 MAT-file")
    assert "is not nyu_depth_v2_labeled.mat, HDF5 with images and depths" in faults(file, split="test")[0]
    with h5py.File(file, "w") as target:
        target["images"], target["depths"] = np.zeros((2, 3, 8, 6)), np.zeros((2, 6, 8))
    assert "images of (2, 3, 8, 6) and depths of (2, 6, 8)" in faults(file, split="training")[0]


def arrays(folder: Path, *, normalised: bool, count: int = 3) -> np.ndarray:
    """Write the published arrays; return the test depth in metres."""
    metres = np.stack([depth(i) for i in range(count)])
    minmax = np.stack([metres.max(axis=(1, 2)), metres.min(axis=(1, 2))])
    unit = (metres - minmax[1][:, None, None]) / (minmax[0] - minmax[1])[:, None, None]
    colours = np.stack([colour(i) for i in range(count)])
    folder.mkdir(exist_ok=True)
    for name in ("train_images_split", "test_images_v2"):
        np.save(folder / f"{name}.npy", colours)
    for name in ("train_depth_split", "test_depth"):
        np.save(folder / f"{name}.npy", unit if normalised else metres)
    np.save(folder / "test_minmax.npy", minmax)
    return metres


@pytest.mark.parametrize("normalised", [True, False])
def test_the_published_arrays_are_read_in_metres(normalised: bool, tmp_path: Path) -> None:
    metres = arrays(tmp_path, normalised=normalised)
    pairs = opened(tmp_path, split="test", start=1)
    pair = pairs.read(1)
    assert_well_formed(pair)
    assert (len(pairs), pairs.name(1), pairs.size(0)) == (2, "nyu-0002", (6, 8))
    assert np.abs(pair.target[:, :, 0] - metres[2]).max() < 2e-6  # measured: 5e-7; normalised it is metres off
    assert np.array_equal(pair.guidance, colour(2).astype(np.float32) / 255)
    assert opened(tmp_path, split="training").read(0).valid.all()  # the nearest point, which is 0, is none that lacks


@pytest.mark.parametrize("scale", [1, 255])
def test_published_images_may_be_floats(scale: int, tmp_path: Path) -> None:
    arrays(tmp_path, normalised=True)
    np.save(tmp_path / "test_images_v2.npy", np.stack([colour(i) for i in range(3)]).astype(np.float32) * scale / 255)
    assert np.abs(opened(tmp_path, split="test").read(1).guidance - colour(1) / 255).max() < 1e-6


def test_what_is_wrong_with_the_published_arrays_is_told(tmp_path: Path) -> None:
    metres = arrays(tmp_path, normalised=True)
    assert "split: missing; a folder of NYU's arrays has two splits: write training or test" in faults(tmp_path)[0]
    assert "guidance: has no effect on a folder of NYU's arrays" in faults(tmp_path, split="test", guidance="*")[0]
    (tmp_path / "test_minmax.npy").unlink()
    assert "test_minmax.npy does not exist" in faults(tmp_path, split="test")[0]
    np.save(tmp_path / "test_minmax.npy", np.zeros((2, 7)))
    assert "has shape (2, 7); 3 frames need (2, 3)" in faults(tmp_path, split="test")[0]
    np.save(tmp_path / "test_minmax.npy", np.array([[9.0] * 3, [1.0] * 3]))
    np.save(tmp_path / "test_depth.npy", metres * 1000)
    assert "neither from 0 to 1 nor from 1 to 9 meters" in faults(tmp_path, split="test")[0]
    np.save(tmp_path / "train_depth_split.npy", metres[:2])
    assert "both must have the same number of frames and the same size" in faults(tmp_path, split="training")[0]
    (tmp_path / "train_images_split.npy").unlink()
    assert "train_images_split.npy does not exist" in faults(tmp_path, split="training")[0]


# ------------------------------------------------------------------------------------------------ data that may be here


@pytest.mark.skipif(not VISION.is_dir(), reason="../shared/data/vision is not here")
def test_the_sets_that_are_here_are_found_by_their_names() -> None:
    middlebury, frames, motorcycle = (opened(VISION / n) for n in ("middlebury", "nyu_v2_3pairs", "skimage_motorcycle"))
    assert [middlebury.name(i) for i in (0, 19)] == ["Middlebury_11", "Middlebury_30"]
    assert [frames.name(i) for i in range(len(frames))] == ["1000", "1001", "1002"]
    assert [motorcycle.name(i) for i in range(len(motorcycle))] == ["motorcycle"]
    for pairs in (middlebury, frames, motorcycle):
        assert_well_formed(pairs.read(0))
    assert motorcycle.read(0).valid.mean() == pytest.approx(0.927, abs=0.001)
    assert frames.read(0).target.max() == pytest.approx(4.017, abs=0.001)


# ------------------------------------------------------------------------------------------- data as people have them


def test_patterns_pair_by_what_their_wildcards_match(tmp_path: Path) -> None:
    """The names of the published Lu set: "ouput" in one and "output" in the other."""
    for number in (2, 1):
        save(colour(number), tmp_path / f"RGBD_0{number}_ouput_color.png")
        save(depth(number), tmp_path / f"RGBD_0{number}_output_depth.npy")
    assert "have no target" in faults(tmp_path)[0]
    pairs = opened(tmp_path, guidance="RGBD_*_ouput_color.png", target="RGBD_*_output_depth.npy")
    for place, number in enumerate((1, 2)):
        assert np.array_equal(pairs.read(place).target[:, :, 0], depth(number))
        assert np.array_equal(pairs.read(place).guidance, colour(number).astype(np.float32) / 255)


def test_folders_of_any_name_pair_by_wildcards(tmp_path: Path) -> None:
    for number in range(3):
        save(colour(number), tmp_path / f"JPEGImages/2007_00{number}.bmp")
        save(depth(number), tmp_path / f"SegmentationClass/2007_00{number}.npy")
    pairs = opened(tmp_path, guidance="JPEGImages/*.bmp", target="SegmentationClass/*.npy")
    assert all(np.array_equal(pairs.read(n).target[:, :, 0], depth(n)) for n in range(3))
    save(depth(9), tmp_path / "SegmentationClass/2007_009.npy")
    [told] = faults(tmp_path, guidance="JPEGImages/*.bmp", target="SegmentationClass/*.npy")
    assert "partners have the same text at the wildcards of the patterns, or equal names" in told


@pytest.mark.parametrize(
    ("pattern", "path", "texts"),
    [
        ("a_*_b?.png", "a_01_b3.png", ("01", "3")),
        ("**/[lr]*.png", "x/y/left.png", ("x/y/", "l", "eft")),
        ("**/[lr]*.png", "right.png", ("", "r", "ight")),
        ("[!ab]/(*).png", "c/(1).png", ("c", "1")),
    ],
)
def test_wildcards_match_as_those_of_a_path_do(pattern: str, path: str, texts: tuple[str, ...], tmp_path: Path) -> None:
    save(colour(0), tmp_path / path)
    assert list(tmp_path.glob(pattern)) == [tmp_path / path]
    assert pair_folder._by_wildcards([tmp_path / path], pattern, tmp_path) == {texts: [tmp_path / path]}


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_image_is_turned_as_it_is_shown(mode: str, orientation: int, tmp_path: Path) -> None:
    values = colour(0) if mode == "RGB" else depth(0).astype(np.uint8 if mode == "L" else np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "a.tif"
    Image.fromarray(values).save(file, exif=exif)
    turned = np.rot90(values, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    read = image_files.read_values(file)
    assert image_files.layout(file).size == read.shape[:2] == turned.shape[:2]
    assert np.array_equal(
        read if mode == "RGB" else read[:, :, 0], turned / np.float32(255) if mode == "RGB" else turned
    )


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_portrait_photo_beside_landscape_depth_is_a_fault(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "RGB").mkdir()
    Image.fromarray(colour(0)).save(tmp_path / f"RGB/a{suffix}", exif=exif)
    save(depth(0), tmp_path / "Depth/a.npy")
    assert f"a{suffix} has 8 x 6 pixels and a.npy 6 x 8" in faults(tmp_path)[0]
    save(np.ascontiguousarray(depth(0).T), tmp_path / "Depth/a.npy")
    assert opened(tmp_path).read(0).guidance.shape == (8, 6, 3)


def test_a_target_with_a_palette_is_labels_and_a_guidance_is_colours(tmp_path: Path) -> None:
    labels = (np.arange(48).reshape(6, 8) % 21).astype(np.uint8)
    image = Image.fromarray(labels, "P")
    image.putpalette([(7 * n) % 256 for n in range(768)])
    for folder in ("RGB", "Depth"):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / f"{folder}/a.png")
    pairs = opened(tmp_path, missing=None)
    assert pairs.channels(0) == 1
    assert np.array_equal(pairs.read(0).target[:, :, 0], labels)
    assert np.array_equal(pairs.read(0).guidance, np.asarray(image.convert("RGB")) / np.float32(255))


def test_real_inputs_have_their_holes_filled_and_count_in_the_fingerprint(tmp_path: Path) -> None:
    patterns = {"guidance": "*_color.png", "target": "*_depth.npy", "input": "*_low.npy"}
    for number in range(2):
        save(colour(number), tmp_path / f"{number}_color.png")
        save(depth(number), tmp_path / f"{number}_depth.npy")
        save(depth(number, (3, 4)), tmp_path / f"{number}_low.npy")
    small = depth(1, (3, 4))
    small[0, 0] = 0
    save(small, tmp_path / "1_low.npy")
    pairs = opened(tmp_path, **patterns)
    assert (pairs.size(1), pairs.input_size(1)) == ((6, 8), (3, 4))
    read = pairs.read(1).input
    assert read is not None
    assert float(read[0, 0, 0]) in (float(small[0, 1]), float(small[1, 0]))
    assert np.array_equal(read[1:, :, 0], small[1:])
    before = pairs.fingerprint
    save(small + 1, tmp_path / "1_low.npy")
    assert opened(tmp_path, **patterns).fingerprint != before
    assert opened(tmp_path, guidance="*_color.png", target="*_depth.npy").input_size(1) is None
    assert "an input pattern needs both others" in faults(tmp_path, input="*_low.npy")[0]
    save(colour(5, (3, 4)), tmp_path / "1_low.npy")
    assert "has 3 channels and 1_depth.npy 1; both must be maps" in faults(tmp_path, **patterns)[0]


def test_labels_of_sources_are_as_much_of_their_paths_as_tells_them_apart() -> None:
    sources = [PairSourceConfig(path=p) for p in ("a/test", "b/test", "b/test", "data/Lu-set", "procedural-scenes")]
    assert labels(sources) == ["a_test", "b_test", "b_test", "Lu_set", "procedural_scenes"]
    mixed = [PairSourceConfig(path=p, label=n) for p, n in (("a", "x"), ("b", "y"), ("c", "x"))]
    assert [source.path for source in by_label(mixed)] == ["a", "c", "b"]
