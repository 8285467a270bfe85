"""Validation images in a report: what is read, what is drawn where, on which scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle

from analysis.figures.pictures.filtered import ImageOfRuns, choose, pictures, short, slug
from analysis.figures.pictures.kernels import kernels, regular_taps, symmetric_scale
from analysis.figures.pictures.picture import HOLE, range_of
from analysis.images.filtered import FilteredImage
from analysis.images.saved import RunImages, read_image, read_images
from analysis.page.contents import Section
from analysis.page.writing import write_page
from analysis.report.report import report_sections
from analysis.runs import read_run
from analysis.style import Plate
from tests.analysis.synthetic import filtered_image, write_filter_run, write_run

LAST = "step_000040"


def read(folder: Path) -> RunImages:
    return read_images(read_run(folder))


def axes_of(plate: Plate, name: str) -> Axes:
    found = {panel.name: panel for panel in plate.panels}
    return found[name].figure.axes[0]


def drawn(axes: Axes) -> np.ma.MaskedArray:
    """Return the picture on axes, masked where it has holes."""
    return np.ma.masked_invalid(np.ma.asarray(axes.get_images()[0].get_array()))


def shown(folder: Path, **changes: Any) -> tuple[ImageOfRuns, RunImages]:
    found = read(write_filter_run(folder, images={f"{LAST}/scene.npz": filtered_image(**changes)}))
    (image,), _ = choose([found])
    return image, found


def test_errors_are_in_units_and_holes_do_not_count(tmp_path: Path) -> None:
    """An input off by 0.2 at 50 cm per value is off by 10 cm; the holes' truth of 9 must not be seen."""
    image = shown(tmp_path / "run")[0].first
    assert image.rmse("input") == pytest.approx(10, rel=1e-5)
    assert image.rmse("output") == pytest.approx(5, rel=1e-5)
    assert image.error("output")[:, :-2] == pytest.approx(np.full((24, 30), 5.0), rel=1e-5)
    assert np.isnan(image.error("output")[:, -2:]).all()


def test_rmse_is_the_root_of_the_mean_square_over_pixels_and_colors(tmp_path: Path) -> None:
    """One of four color values is off by 2, at 3 units each: sqrt(36 / 12) over 2 x 2 pixels with one known column."""
    truth = np.zeros((2, 2, 3), np.float32)
    output = truth.copy()
    output[0, 0, 1] = 2
    output[:, 1] = 7  # a hole
    valid = np.array([[True, False], [True, False]])
    pixel = np.array([[0, 0]], np.int32)
    arrays = filtered_image((2, 2), channels=3, truth=truth, output=output, valid=valid, pixel=pixel,
                            units_per_value=np.float32(3))  # fmt: skip
    path = tmp_path / "color.npz"
    np.savez_compressed(path, allow_pickle=False, **arrays)
    image = read_image(path, step=1)
    assert isinstance(image, FilteredImage)
    assert image.rmse("output") == pytest.approx(np.sqrt(36 / 6))
    assert image.error("output")[0, 0] == pytest.approx(2.0)  # the mean over the colors of 0, 6, 0


def test_rmse_leaves_the_border_out_along_sides_that_are_longer() -> None:
    zero, valid = np.zeros((6, 8, 1)), np.ones((6, 8), bool)
    output = zero.copy()
    output[0], output[2, 3] = 100.0, 4.0
    common = {"input": zero, "output": output, "truth": zero, "valid": valid, "guidance": np.zeros((6, 8, 3))}
    common |= {"name": "a", "step": 1, "units_per_value": 1.0, "unit": "", "offset_length": zero[..., 0]}
    common |= {name: zero for name in ("pixel", "positions", "weights")}
    assert FilteredImage(**common, border=1).rmse("output") == pytest.approx(4 / np.sqrt(4 * 6))
    assert FilteredImage(**common, border=3).rmse("output") == pytest.approx(
        np.sqrt((2e4 + 16) / 12)
    )  # of the width alone


def test_the_last_evaluation_is_read_and_broken_files_are_notes(tmp_path: Path) -> None:
    """An older step is fallen back to only where nothing of the last can be read."""
    old = {"step_000020/b.npz": filtered_image(), "step_000040/a.npz": filtered_image()}
    run = write_filter_run(tmp_path / "run", images=old)
    whole = (run / "images/step_000040/a.npz").read_bytes()
    (run / "images/step_000040/half.npz").write_bytes(whole[: len(whole) // 2])
    (run / "images/step_000040/.next.npz").write_bytes(b"")
    found = read(run)
    assert [(image.name, image.step) for image in found.images] == [("a", 40)]
    assert len(found.notes) == 1
    assert found.notes[0].startswith("images/step_000040/half.npz cannot be read (")
    (run / "images/step_000040/a.npz").write_bytes(b"")
    assert [(image.name, image.step) for image in read(run).images] == [("b", 20)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"output": np.zeros((5, 4, 1), np.float32)}, "output has shape (5, 4, 1), which does not fit guidance (H"),
        ({"output": np.zeros((24, 32, 3), np.float32)}, "(C is 1)"),
        ({"valid": np.ones((24, 32, 1), bool)}, "valid has shape (24, 32, 1), not 2 axes"),
        ({"weights": np.zeros((1, 4), np.float32)}, "(K is 9)"),
        ({"pixel": np.array([[24, 0]], np.int32)}, "a chosen pixel lies outside the image"),
        ({"truth": np.full((24, 32, 1), "x")}, "truth holds <U1, not numbers"),
        ({"unit": np.array([{}], object)}, ""),
    ],
)  # fmt: skip
def test_arrays_that_do_not_belong_together_are_named(
    tmp_path: Path, changes: dict[str, np.ndarray], reason: str
) -> None:
    run = write_filter_run(tmp_path / "run")
    (run / "images" / LAST).mkdir(parents=True)
    np.savez(run / f"images/{LAST}/x.npz", **{**filtered_image(), **changes})  # type: ignore[arg-type]
    found = read(run)
    assert not found.images
    assert reason in found.notes[0]
    assert "no readable image in" in found.absence


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04", b"\x93NUMPY", bytes(range(256)) * 8])
def test_no_content_of_a_file_ends_the_report(tmp_path: Path, content: bytes) -> None:
    run = write_filter_run(tmp_path / "run", images={f"{LAST}/good.npz": filtered_image()})
    (run / f"images/{LAST}/bad.npz").write_bytes(content)
    np.save(run / f"images/{LAST}/array.npy", np.zeros(3))
    (run / f"images/{LAST}/array.npy").rename(run / f"images/{LAST}/array.npz")
    found = read(run)
    assert [image.name for image in found.images] == ["good"]
    assert len(found.notes) == 2


def test_a_flipped_byte_never_ends_the_report(tmp_path: Path) -> None:
    run = write_filter_run(tmp_path / "run", images={f"{LAST}/x.npz": filtered_image()})
    path, record = run / f"images/{LAST}/x.npz", read_run(run)
    whole = path.read_bytes()
    for at in range(0, len(whole), 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        read_images(record)


def test_panels_show_the_arrays_with_their_holes_on_common_scales(tmp_path: Path) -> None:
    image, _ = shown(tmp_path / "run")
    plate = pictures(image, 0)
    assert [panel.name for panel in plate.panels] == [
        "guidance", "input", "truth", "error-input", "output", "error-output", "offsets"
    ]  # fmt: skip
    assert drawn(axes_of(plate, "output")).mean() == pytest.approx(image.first.output.mean())
    for name in ("truth", "error-input", "error-output"):
        holes = np.ma.getmaskarray(drawn(axes_of(plate, name)))
        assert holes[:, -2:].all()
        assert not holes[:, :-2].any()
    scales = {name: axes_of(plate, name).get_images()[0].get_clim() for name in ("input", "truth", "output")}
    assert set(scales.values()) == {(0.0, 0.5)}  # of the truth that is known
    for name in ("error-input", "error-output"):
        assert axes_of(plate, name).get_images()[0].get_clim() == pytest.approx((0, 10), rel=1e-5)
    assert axes_of(plate, "error-output").get_title(loc="left") == "error of the output: RMSE 5 cm"
    assert axes_of(plate, "error-output").figure.axes[1].get_xlabel() == "absolute error (cm)"
    assert axes_of(plate, "offsets").get_title(loc="left") == "offsets: mean 0.5 px"
    (mark,) = (line for line in axes_of(plate, "guidance").get_lines() if line.get_gid() == "pixel")
    assert (mark.get_xdata(), mark.get_ydata()) == ([10], [12])  # column, row
    assert "over the valid pixels of this image" in plate.caption


def test_a_color_image_is_shown_in_color_and_its_holes_in_grey(tmp_path: Path) -> None:
    image, _ = shown(tmp_path / "run", **filtered_image(channels=3))
    plate = pictures(image, 0)
    truth = np.asarray(axes_of(plate, "truth").get_images()[0].get_array())
    assert truth[:, -1] == pytest.approx(np.full((24, 3), int(HOLE[1:3], 16) / 255))
    assert truth[:, 0] == pytest.approx(np.zeros((24, 3)))
    assert len(axes_of(plate, "truth").figure.axes) == 1  # no color bar
    assert len(axes_of(plate, "error-output").figure.axes) == 2


def test_runs_stand_side_by_side_and_what_they_share_is_shown_once(tmp_path: Path) -> None:
    task = {"kind": "depth_upsampling", "model": {"architecture": "dkn"}, "shown_images": 1}
    worse = filtered_image()
    worse["output"] = worse["output"] - np.float32(0.2)
    runs = [
        read(write_filter_run(tmp_path / "a", images={f"{LAST}/scene.npz": filtered_image()})),
        read(write_filter_run(tmp_path / "b", images={f"{LAST}/scene.npz": worse}, task=task)),
        read(write_filter_run(tmp_path / "seed", images={f"{LAST}/scene.npz": worse}, task=task, seed=1)),
    ]
    (image,), notes = choose(runs)
    plate = pictures(image, 0)
    assert [panel.name for panel in plate.panels] == [
        "guidance", "input-1", "truth-1", "error-input-1", "output-1", "output-2", "error-output-1", "error-output-2",
        "offsets-1", "offsets-2",
    ]  # fmt: skip
    assert notes == ["Images not shown for seed (of runs that differ only in seed, the first is shown)."]
    assert axes_of(plate, "error-output-2").get_title(loc="left") == "b\nerror of the output: RMSE 15 cm"
    clims = {axes_of(plate, f"error-output-{i}").get_images()[0].get_clim() for i in (1, 2)}
    assert len(clims) == 1
    assert clims.pop()[1] == pytest.approx(15, rel=1e-5)


def test_many_runs_and_images_are_bounded_and_named(tmp_path: Path) -> None:
    images = {f"{LAST}/{name}.npz": filtered_image() for name in "abcde"}
    runs = [
        read(write_filter_run(tmp_path / f"lr-{i}", images=images, optim__lr=0.1 * i, better=1 + i))
        for i in range(1, 7)
    ]
    found, notes = choose(runs)
    assert [image.name for image in found] == ["a", "b", "c"]
    assert len(found[0].by_run) == 4
    assert notes[0].startswith("Images not shown for lr-")
    assert "of 6 groups, the 4 with the lowest final validation loss" in notes[0]
    assert notes[1] == "Saved by the runs but not shown: d, e."


def test_samples_are_drawn_where_they_are_read(tmp_path: Path) -> None:
    """Pixel (12, 10): the 3 x 3 taps, half a pixel to the right; the x axis is the column, rows run downward."""
    image, found = shown(tmp_path / "run")
    plate = kernels(image, 0, [found.record])
    assert [panel.name for panel in plate.panels] == ["1-guidance", "1-input", "1-weights"]
    for name in ("1-guidance", "1-input"):
        axes = axes_of(plate, name)
        (samples,) = (item for item in axes.collections if isinstance(item, PathCollection))
        places = np.asarray(samples.get_offsets())
        assert places == pytest.approx(np.array([[10.5 + c, 12 + r] for r in (-1, 0, 1) for c in (-1, 0, 1)]))
        assert axes.get_ylim()[0] > axes.get_ylim()[1]
        box = {patch.get_gid(): patch for patch in axes.patches if isinstance(patch, Rectangle)}
        assert (*box["window"].get_xy(), box["window"].get_width()) == (10 - 7.5, 12 - 7.5, 15)
        assert (*box["pixel"].get_xy(), box["pixel"].get_width()) == (9.5, 11.5, 1)
        (taps,) = (line for line in axes.get_lines() if line.get_gid() == "taps")
        places = np.stack([np.asarray(taps.get_ydata()), np.asarray(taps.get_xdata())], axis=1)
        assert places.tolist() == [[12 + r, 10 + c] for r in (-1, 0, 1) for c in (-1, 0, 1)]
        colors = np.asarray(samples.get_facecolor())
        assert colors[4] == pytest.approx([0.97, 0.97, 0.97, 1], abs=0.01)  # a weight of zero is white
        assert colors[0][2] > colors[0][0]  # negative: blue
        assert colors[8][0] > colors[8][2]  # positive: red
    bars = axes_of(plate, "1-weights")
    assert [patch.get_width() for patch in bars.patches if isinstance(patch, Rectangle)] == pytest.approx(
        (np.arange(9) - 4) / 9
    )
    assert bars.get_title(loc="left").endswith("sum 0.000")
    assert bars.texts[0].get_text() == "-0.444"


def test_the_scale_of_weights_is_symmetric() -> None:
    scale = symmetric_scale([np.array([-0.1, 0.7]), np.array([np.nan, -0.9])])
    assert (scale.vmin, scale.vmax) == (-0.9, 0.9)
    assert symmetric_scale([np.zeros(3)]).vmax == 1


def test_regular_taps_are_the_neighbors_or_those_of_the_authors_weights() -> None:
    assert regular_taps(9, window=15, sampling="centered")[[0, 4, 8]].tolist() == [[-1, -1], [0, 0], [1, 1]]
    assert regular_taps(25, window=15, sampling="centered")[0].tolist() == [-2, -2]
    # 7, 8, 9 times 14 / 15 in a patch whose center is 7
    displaced = regular_taps(9, window=15, sampling="compat")
    assert displaced[:3, 1] == pytest.approx([-0.4667, 0.4667, 1.4], abs=1e-4)
    assert len(regular_taps(8, window=15, sampling="centered")) == 0


def test_an_output_that_is_not_finite_is_said_and_drawn_as_holes(tmp_path: Path) -> None:
    output = np.full((24, 32, 1), np.nan, np.float32)
    image, found = shown(tmp_path / "run", output=output, positions=np.full((1, 9, 2), np.nan, np.float32),
                         weights=np.full((1, 9), np.nan, np.float32))  # fmt: skip
    plate = pictures(image, 0)
    assert axes_of(plate, "error-output").get_title(loc="left") == "error of the output: RMSE not finite"
    write_page(tmp_path / "out", "x", [Section(title="x", plates=[plate, kernels(image, 0, [found.record])])])
    assert (tmp_path / "out/figures/image-1-scene-output.png").exists()


def test_scales_are_never_empty() -> None:
    for arrays in ([np.array([])], [np.full(3, np.nan)], [np.full(3, 2.0)]):
        scale = range_of(arrays)
        assert scale.vmax is not None
        assert scale.vmin is not None
        assert scale.vmax > scale.vmin


def test_absent_images_are_named_and_other_tasks_have_no_such_section(tmp_path: Path) -> None:
    run = read_run(write_filter_run(tmp_path / "none"))
    (section,) = (part for part in report_sections([run]) if part.title == "Validation images")
    assert section.plates[0].missing == [f"none: no images in {run.folder} yet"]
    off = read_run(write_filter_run(tmp_path / "off", task={"kind": "depth_upsampling", "shown_images": 0}))
    assert read_images(off).absence == "off: no images, because task.shown_images was 0"
    text = read_run(write_run(tmp_path / "text"))
    assert "Validation images" not in [part.title for part in report_sections([text])]


def test_names_fit_files_and_titles() -> None:
    assert slug("a b/c.d") == "a-b-c-d"
    assert slug("///") == "image"
    assert len(short("x" * 200)) == 52
