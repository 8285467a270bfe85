"""Images of any kind: layouts, types, masks, labels, orientation and files; what is no image is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modeling.joint_filter.image_processing_dkn import DKNImageProcessor
from modeling.joint_filter.images_dkn import read_guidance, read_target, unit_range

from .plain_filter import random_filter

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (20, 24, 3), dtype=np.uint8)
DEPTH = RANDOM.integers(500, 60_000, (20, 24)).astype(np.uint16)
FLAT = Image.fromarray(COLOURS)


def guidance_of(image: Any) -> torch.Tensor:
    return DKNImageProcessor()(image, np.ones((1, 1), np.float32))["guidance"][0]


def target_of(image: Any, invalid: Any = "none") -> torch.Tensor:
    return DKNImageProcessor(invalid=invalid)(COLOURS, image)["target"][0]


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1, 3), (1, 1)),
        ((3, 3, 3), (3, 3)),
        ((1, 7, 3), (1, 7)),
        ((3, 7, 3), (3, 7)),
        ((3, 7, 4), (3, 7)),
        ((4, 1, 1), (4, 1)),
        ((3, 7, 5), (7, 5)),
        ((1, 7, 5), (7, 5)),
        ((4, 7, 5), (7, 5)),
        ((7, 5, 4), (7, 5)),
        ((7, 5, 1), (7, 5)),
        ((7, 5), (7, 5)),
    ],
    ids=str,
)
def test_channels_are_behind_wherever_they_could_be(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    array = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    for given in (array, torch.from_numpy(array)):
        found = unit_range(read_guidance(given))
        assert found.shape == (3, *size)
        behind = array[..., None] if array.ndim == 2 else array
        behind = behind if behind.shape[2] in (1, 3, 4) else np.moveaxis(behind, 0, -1)
        expected = np.broadcast_to(behind[..., :3], (*size, 3)) / np.float32(255)
        assert (found.movedim(0, -1).numpy() == expected).all()


def test_a_result_has_the_layout_of_its_target() -> None:
    model = random_filter()
    rgba = np.dstack([COLOURS, np.full((20, 24), 9, np.uint8)])
    expected = model.filter(COLOURS, COLOURS)
    assert expected.shape == (20, 24, 3)
    assert (model.filter(rgba, rgba) == expected).all()  # alpha is dropped
    first = np.ascontiguousarray(np.moveaxis(rgba, -1, 0))
    assert (model.filter(first, first) == np.moveaxis(expected, -1, 0)).all()
    assert (np.asarray(model.filter(FLAT.convert("RGBA"), FLAT.convert("RGBA"))) == expected).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (3, 3), (1, 9), (5, 1), (4, 4)], ids=str)
@pytest.mark.parametrize("architecture", ["fdkn", "dkn"])
def test_tiny_images_come_back_in_their_shape(shape: tuple[int, int], architecture: str) -> None:
    model = random_filter(architecture=architecture)
    colours = RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8)
    depth = RANDOM.uniform(1, 2, shape).astype(np.float32)
    assert model.filter(colours, depth).shape == shape
    assert model.filter(colours, colours).shape == (*shape, 3)
    assert model.filter(Image.fromarray(colours), Image.fromarray(depth)).size == shape[::-1]
    assert model.filter(colours, np.array([[2]], np.float32)).shape == shape
    assert random_filter(purpose={"task": "depth", "scale": 8}).filter(colours[:1, :1], depth[:1, :1]) == depth[0, 0]


# ------------------------------------------------------------------------------------------------------- numpy's views


def test_views_with_negative_strides_are_read_as_copies() -> None:
    """OpenCV's blue, green, red turned by a slice, and images turned upside down."""
    model = random_filter()
    blue_first = COLOURS[:, :, ::-1].copy()
    expected = model.filter(COLOURS, DEPTH)
    assert (model.filter(blue_first[:, :, ::-1], DEPTH) == expected).all()
    down = model.filter(np.flipud(np.flipud(COLOURS).copy()), np.flipud(np.flipud(DEPTH).copy()))
    assert (down == expected).all()
    frozen = COLOURS.copy()
    frozen.flags.writeable = False
    assert (model.filter(frozen, DEPTH[:, ::2][:, :12].repeat(2, 1)) > 0).all()


@pytest.mark.parametrize("dtype", [">u2", ">i4", ">f4", ">f8", "<u2", "f2", "longdouble"])
def test_the_byte_order_is_kept(dtype: str) -> None:
    values = (DEPTH // 64).astype(dtype)
    found = random_filter().filter(COLOURS, values)
    assert found.dtype == np.dtype(dtype)
    expected = random_filter().filter(COLOURS, values.astype(np.dtype(dtype).newbyteorder("=")))
    assert (found == expected).all()
    if dtype == ">u2":
        assert (guidance_of(DEPTH.astype(dtype)) == guidance_of(DEPTH)).all()


@pytest.mark.parametrize("kind", ["complex64", "object", "U3", "datetime64[s]"])
def test_arrays_of_no_numbers_are_refused(kind: str) -> None:
    array = np.zeros((20, 24), kind)
    for name, pair in (("guidance", (array, DEPTH)), ("target", (COLOURS, array))):
        with pytest.raises(ValueError, match=rf"{name}: .* values are no image; write integers, floats or bools"):
            random_filter().filter(*pair)


def test_tensors_of_complex_numbers_and_empty_images_are_refused() -> None:
    with pytest.raises(ValueError, match="target: complex64 values are no image"):
        random_filter().filter(COLOURS, torch.zeros(20, 24, dtype=torch.complex64))
    with pytest.raises(ValueError, match="target: an image of 0 x 24 has no pixels"):
        random_filter().filter(COLOURS, DEPTH[:0])
    with pytest.raises(ValueError, match="guidance: an image of 0 x 3 has no pixels"):
        random_filter().filter(Image.new("RGB", (3, 0)), DEPTH)


def test_a_tensor_with_a_gradient_is_filtered() -> None:
    found = random_filter().filter(COLOURS, torch.rand(20, 24, requires_grad=True))
    assert not found.requires_grad


# --------------------------------------------------------------------------------------------------- guidance and white


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint32", "uint64"])
def test_integers_below_256_are_read_as_bytes_and_said_to_be(dtype: str) -> None:
    with pytest.warns(UserWarning, match=f"guidance: {dtype} values up to .* are read as bytes; convert them to uint8"):
        found = guidance_of(COLOURS.astype(dtype))
    assert (found == guidance_of(COLOURS)).all()


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint32", "uint64"])
def test_other_integers_have_no_known_white(dtype: str) -> None:
    message = f"guidance: {dtype} values up to 256, whose white is unknown; convert them to uint8 or uint16"
    with pytest.raises(ValueError, match=message):
        guidance_of(np.arange(257).astype(dtype)[None])


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_negative_guidance_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"guidance: {dtype} values from -1 to .*; an image has none below 0"):
        guidance_of((COLOURS // 4).astype(dtype) - 1)


def test_the_integers_of_pil_have_16_bits_unless_they_fit_8() -> None:
    """Its mode I comes from files of 16 bits, and from arrays of int32."""
    assert (guidance_of(Image.fromarray(DEPTH.astype(np.int32))) == guidance_of(DEPTH)).all()
    big_endian = Image.frombytes("I;16B", (24, 20), DEPTH.astype(">u2").tobytes())
    assert (guidance_of(big_endian) == guidance_of(DEPTH)).all()
    with pytest.warns(UserWarning, match="guidance: PIL's mode I values up to .* are read as bytes"):
        found = guidance_of(Image.fromarray(COLOURS[..., 0].astype(np.int32)))
    assert (found == guidance_of(COLOURS[..., 0])).all()
    with pytest.raises(ValueError, match="guidance: PIL's mode I values up to 65536, whose white is unknown"):
        guidance_of(Image.fromarray(np.full((20, 24), 65536, np.int32)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_guidance_with_unknown_pixels_is_refused(value: float) -> None:
    colours = (COLOURS / 255).astype(np.float32)
    colours[3, 4:6, 1] = value
    with pytest.raises(ValueError, match="guidance: 2 of its 1440 values are NaN or infinite; fill them"):
        guidance_of(colours)
    masked = np.ma.MaskedArray(COLOURS, np.zeros(COLOURS.shape, bool))
    assert (guidance_of(masked) == guidance_of(COLOURS)).all()
    masked[3, 4] = np.ma.masked
    with pytest.raises(ValueError, match="guidance: 1 pixels are masked; fill them"):
        guidance_of(masked)


# ------------------------------------------------------------------------------------------------------- masks, labels


def test_masked_pixels_are_holes_and_stay_masked() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:4] = True
    depth = RANDOM.uniform(1, 5, (5, 6)).astype(np.float32)
    with_holes = np.where(mask, np.float32(0), depth)
    expected = random_filter().filter(COLOURS, with_holes, iterations=2)
    found = random_filter().filter(COLOURS, np.ma.MaskedArray(np.where(mask, 99, depth), mask), iterations=2)
    assert isinstance(found, np.ma.MaskedArray)
    assert (found.mask == mask.repeat(4, 0).repeat(4, 1)).all()
    assert (found.data[~found.mask] == expected[~found.mask]).all()
    assert (found.data[found.mask] == 99).all()
    none = random_filter().filter(COLOURS, np.ma.MaskedArray(depth))
    assert not np.ma.getmaskarray(none).any()
    colour = random_filter().filter(COLOURS, np.ma.MaskedArray(COLOURS, COLOURS < 5))
    assert (colour.mask == (COLOURS < 5).any(axis=2, keepdims=True)).all()


def labels_image(labels: np.ndarray, mode: str = "P") -> Image.Image:
    image = Image.fromarray(labels.astype(np.uint8), "L")
    image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
    assert image.mode == "P"
    return image.convert(mode) if mode != "P" else image


def test_labels_stay_labels() -> None:
    """No label that was not there, not even between 0 and 15; the palette stays; zero, and 255, are labels, too."""
    labels = np.zeros((5, 6), np.uint8)
    labels[1:4, 1:5], labels[0], labels[4, 5] = 15, 255, 3
    found = random_filter().filter(COLOURS, labels_image(labels), iterations=2)
    assert (found.mode, found.size) == ("P", (24, 20))
    assert found.getpalette() == labels_image(labels).getpalette()
    assert set(np.unique(np.asarray(found))) <= {0, 3, 15, 255}
    whole = np.full((20, 24), 7, np.uint8)
    assert (np.asarray(random_filter().filter(COLOURS, labels_image(whole))) == 7).all()
    large = random_filter().filter(COLOURS, labels_image(labels.repeat(4, 0).repeat(4, 1)), scale=1)
    inside = np.asarray(large)[8:12, 10:14]
    assert set(np.unique(inside)) <= {0, 3, 15, 255}


def test_each_label_is_filtered_as_a_map_of_its_own() -> None:
    labels = RANDOM.choice(np.array([2, 9, 200], np.uint8), (5, 6))
    model = random_filter()
    masks = np.stack([labels == each for each in (2, 9, 200)]).astype(np.float32)
    with torch.no_grad():
        scores = [model(**DKNImageProcessor(invalid="none")(COLOURS, mask)).output for mask in masks]
    expected = np.array([2, 9, 200])[torch.cat(scores)[:, 0].argmax(dim=0).numpy()]
    found = model.filter(COLOURS, labels_image(labels))
    assert (np.asarray(found) == expected).all()


def test_a_palette_with_alpha_has_the_same_labels() -> None:
    labels = RANDOM.integers(0, 4, (20, 24)).astype(np.uint8)
    model, image = random_filter(), labels_image(labels)
    found = model.filter(COLOURS, labels_image(labels, "PA"))
    assert (np.asarray(found) == np.asarray(model.filter(COLOURS, image))).all()


def test_a_photo_with_a_palette_is_told_to_be_read_as_labels() -> None:
    photo = FLAT.quantize(100)
    with pytest.warns(UserWarning, match="read as labels, of which this has .*; write target.convert"):
        picture = read_target(photo)
    assert picture.labels is not None
    assert (guidance_of(photo) == guidance_of(photo.convert("RGB"))).all()  # the guidance is in color


# --------------------------------------------------------------------------------------------------- files, orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_photo_is_honoured(tmp_path: Path, orientation: int) -> None:
    """In both images, by path or opened; the result is upright."""
    turned = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: np.swapaxes(x, 0, 1),
        6: lambda x: np.rot90(x),  # stored so that a quarter turn clockwise shows it upright
        7: lambda x: np.swapaxes(np.rot90(x, 2), 0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned(COLOURS))).save(tmp_path / "photo.png", exif=exif)
    Image.fromarray(np.ascontiguousarray(turned(DEPTH))).save(tmp_path / "depth.png", exif=exif)
    assert (guidance_of(tmp_path / "photo.png") == guidance_of(COLOURS)).all()
    with Image.open(tmp_path / "photo.png") as photo:
        assert (guidance_of(photo) == guidance_of(COLOURS)).all()
    found = random_filter().filter(tmp_path / "photo.png", tmp_path / "depth.png")
    assert (np.asarray(found) == random_filter().filter(COLOURS, DEPTH)).all()


def test_array_files_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "colours.npy", COLOURS)
    np.savez(tmp_path / "depth.npz", depth=DEPTH)
    found = random_filter().filter(str(tmp_path / "colours.npy"), tmp_path / "depth.npz")
    assert (found == random_filter().filter(COLOURS, DEPTH)).all()
    np.savez(tmp_path / "two.npz", depth=DEPTH, other=DEPTH)
    with pytest.raises(ValueError, match=r"two\.npz: 2 arrays \(depth, other\); save a file with one"):
        random_filter().filter(COLOURS, tmp_path / "two.npz")
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects\.npy: no array of numbers"):
        random_filter().filter(COLOURS, tmp_path / "objects.npy")
    with pytest.raises(FileNotFoundError):
        random_filter().filter(COLOURS, tmp_path / "nothing.npy")
