"""DKNImageProcessor: any image in, the same kind out; and DKNModel.filter, which goes through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modeling.joint_filter.image_processing_dkn import DKNImageProcessor

from .plain_filter import random_filter

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (20, 24, 3), dtype=np.uint8)
DEPTH = RANDOM.integers(500, 60_000, (20, 24)).astype(np.uint16)

TARGETS: dict[str, Any] = {
    "PIL L": Image.fromarray((DEPTH >> 8).astype(np.uint8)),
    "PIL I;16": Image.fromarray(DEPTH),
    "PIL I": Image.fromarray(DEPTH.astype(np.int32) * 100),
    "PIL F": Image.fromarray(DEPTH.astype(np.float32) / 1000),
    "PIL RGB": Image.fromarray(COLOURS),
    "uint8 array": COLOURS,
    "uint16 array": DEPTH,
    "float64 array": DEPTH / 1000,
    "channels first": np.moveaxis(COLOURS, -1, 0),
    "one channel behind": DEPTH[..., None],
    "float tensor": torch.from_numpy(DEPTH / 1000).float()[None],
    "bf16 tensor": torch.rand(20, 24, dtype=torch.bfloat16) + 1,
    "negative": -DEPTH.astype(np.int32),
}


def raw(image: Any) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        return image.double().numpy()
    return np.asarray(image).astype(np.float64)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_comes_back_as_it_was(name: str) -> None:
    """In its own type, mode, layout and units."""
    given = TARGETS[name]
    processor = DKNImageProcessor(invalid="none")
    inputs = processor(COLOURS, given)
    assert inputs["target"].aminmax() == (0, 1)
    assert inputs["target"].dtype == torch.float32
    found = processor.post_process(inputs["target"], given)
    assert type(found) is (Image.Image if isinstance(given, Image.Image) else type(given))
    assert raw(found).shape == raw(given).shape
    kind = "mode" if isinstance(given, Image.Image) else "dtype"
    assert getattr(found, kind) == getattr(given, kind)
    tolerance = 0 if "int" in name or name in ("PIL L", "PIL I;16", "PIL RGB") else 1e-6 * np.ptp(raw(given))
    np.testing.assert_allclose(raw(found), raw(given), atol=tolerance, rtol=0)  # fp32 in between: 6e-8 of the range


def test_guidance_goes_from_zero_to_one() -> None:
    processor = DKNImageProcessor()
    for colours, most in (
        (COLOURS, 255),
        (Image.fromarray(COLOURS), 255),
        (DEPTH, 65_535),
        (Image.fromarray(DEPTH), 65_535),
        (torch.rand(3, 20, 24), 1),
    ):
        found = processor(colours, DEPTH)["guidance"]
        assert found.shape == (1, 3, 20, 24)
        expected = torch.from_numpy(raw(colours) / most)
        expected = expected.movedim(-1, 0) if expected.shape[-1] == 3 else expected.expand(3, -1, -1)
        torch.testing.assert_close(found[0].double(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    "mode", ["1", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16B", "I;16L", "I;16N"]
)
def test_other_modes_become_grey_or_colours(mode: str) -> None:
    if mode == "LAB":
        image = Image.frombytes("LAB", (24, 20), COLOURS.tobytes())
    else:
        image = Image.fromarray(DEPTH).convert("I") if mode.startswith("I") else Image.fromarray(COLOURS)
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert(mode)
    processor = DKNImageProcessor()
    assert processor(image, DEPTH)["guidance"].shape == (1, 3, 20, 24)
    found = processor.post_process(processor(COLOURS, image)["target"], image)
    grey = {"1": "L", "LA": "L", "La": "L", "I;16B": "I", "I;16L": "I", "I;16N": "I"}
    assert found.mode == grey.get(mode, "RGB")


def test_a_small_target_is_enlarged_as_by_pil() -> None:
    small = Image.fromarray(DEPTH[:5, :6].astype(np.float32) / 1000)
    processor = DKNImageProcessor()
    found = processor.post_process(processor(COLOURS, small)["target"], small, clip=False)
    expected = np.asarray(small.resize((24, 20), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(
        np.asarray(found), expected, atol=5e-5, rtol=0
    )  # of 60; measured: 8e-6; not antialiased: 5


def test_pixels_without_a_value_do_not_count() -> None:
    holes = DEPTH.astype(np.float32)
    holes[0, 0], holes[0, 1], holes[0, 2], holes[0, 3] = 0, np.nan, np.inf, -5
    target = DKNImageProcessor()(COLOURS, holes)["target"][0, 0]
    assert (target[0, :3] == target[1, :3]).all()  # the nearest that count
    least, greatest = DEPTH.flat[4:].min(), DEPTH.flat[4:].max()
    assert abs(target[3, 3].item() - (int(DEPTH[3, 3]) - least) / (greatest - least)) < 1e-6
    as_values = DKNImageProcessor(invalid="none")(COLOURS, holes)["target"][0, 0]
    assert as_values[0, 3] == 0
    marked = DKNImageProcessor(invalid=-5)(COLOURS, holes)["target"][0, 0]
    assert marked[0, 0] == 0  # the least now
    assert marked[0, 3] > 0
    assert 0 < as_values[0, 0] < 1e-3
    colours = DKNImageProcessor()(COLOURS, COLOURS)["target"]  # black is a colour
    assert (colours == torch.from_numpy(COLOURS / 255).float().movedim(-1, 0)).float().mean() > 0.5


def test_a_target_of_one_value_keeps_it() -> None:
    flat = np.full((20, 24), 7, np.uint16)
    processor = DKNImageProcessor()
    assert (processor.post_process(processor(COLOURS, flat)["target"], flat) == 7).all()


def test_paths_are_read_with_all_their_bits(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "colours.png")
    Image.fromarray(DEPTH).save(tmp_path / "depth.png")
    processor = DKNImageProcessor()
    found = processor(str(tmp_path / "colours.png"), tmp_path / "depth.png")
    expected = processor(COLOURS, DEPTH)
    assert all((found[name] == expected[name]).all() for name in ("guidance", "target"))


@pytest.mark.parametrize(
    ("guidance", "target", "message"),
    [
        (
            COLOURS,
            -np.ones((20, 24)),
            "target: 100% of its finite pixels are negative.*write invalid='none' if they are values, or invalid=-1 if",
        ),
        (COLOURS, np.ones((40, 24)), "40 x 24 is larger than the guidance, 20 x 24"),
        (COLOURS / 1.0, DEPTH, "guidance: values from 0 to 255; floating-point ones must lie in"),
        (COLOURS, [DEPTH, DEPTH], "target: list is no PIL image, array, tensor, path or URL"),
        (COLOURS, np.ones((2, 20, 24, 3)), r"shape \(2, 20, 24, 3\) is no image"),
        (COLOURS, None, "target: NoneType is no PIL image, array, tensor, path or URL"),
        (np.ones((20, 24, 2), np.uint8), DEPTH, r"guidance: an array of shape \(20, 24, 2\) is no image"),
    ],
    ids=["negative", "large", "range", "list", "batch", "nothing", "two channels"],
)
def test_what_is_no_pair_of_images_is_refused(guidance: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DKNImageProcessor()(guidance, target)


def test_an_unknown_rule_for_missing_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid: 'nan' is none of zero, none, a finite number"):
        DKNImageProcessor(invalid="nan")  # type: ignore[arg-type]


def test_a_filtered_image_is_what_the_network_makes_of_its_tensors() -> None:
    model, processor = random_filter(), DKNImageProcessor()
    inputs = processor(COLOURS, DEPTH)
    with torch.no_grad():
        once = model(**inputs).output
        twice = model(inputs["guidance"], once).output
    assert (model.filter(COLOURS, DEPTH) == processor.post_process(once, DEPTH)).all()
    found = model.filter(Image.fromarray(COLOURS), Image.fromarray(DEPTH), iterations=2)
    assert found.mode == "I;16"
    assert (np.asarray(found) == processor.post_process(twice, DEPTH)).all()


def test_colours_are_filtered_channel_by_channel() -> None:
    """The image guides itself, as in texture removal; each channel is a target of its own."""
    model = random_filter()
    found = model.filter(COLOURS, COLOURS)
    processor = DKNImageProcessor()
    inputs = processor(COLOURS, COLOURS)
    with torch.no_grad():
        channels = [model(inputs["guidance"], inputs["target"][:, i : i + 1]).output for i in range(3)]
    expected = processor.post_process(torch.cat(channels, dim=1), COLOURS)
    assert found.shape == COLOURS.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1  # a batch of three rounds otherwise


def test_filtering_leaves_the_model_as_it_was() -> None:
    model = random_filter().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert (model.filter(COLOURS, DEPTH) == random_filter().filter(COLOURS, DEPTH)).all()
    assert model.training
    assert model.kernels.training
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())


def test_a_filter_is_applied_at_least_once() -> None:
    with pytest.raises(ValueError, match="iterations: 0 given; write 1 or more"):
        random_filter().filter(COLOURS, DEPTH, iterations=0)
