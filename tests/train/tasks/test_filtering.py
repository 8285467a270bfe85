"""The filtering tasks: what counts in a loss and a figure, and that an exported filter gives the run's own figures."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modeling.joint_filter.image_processing_dkn import DKNImageProcessor
from modeling.joint_filter.modeling_dkn import DKNModel
from tests.ranks import Ranks
from tests.tiny_filter import tiny_filter_file
from tests.train.test_resume import rows, train
from train.config.errors import ConfigError
from train.config.load import load, read_run
from train.data.images.pairs import Pair
from train.export import __main__ as export
from train.export.card import model_card
from train.observe.accumulator import Accumulator
from train.observe.console import console_line
from train.observe.jsonl import strict
from train.tasks import build_task
from train.tasks.joint_filter.depth_upsampling import DepthUpsampling
from train.tasks.joint_filter.edges import edges, ratios
from train.tasks.joint_filter.exhibits import shifted, steepest
from train.tasks.joint_filter.image_batch import Images, as_batch, images_of
from train.tasks.joint_filter.joint_filtering import ON_FILES
from train.tasks.joint_filter.texture_removal import TextureRemoval


class Echo(nn.Module):
    """A filter that gives its input back, plus a constant."""

    def __init__(self, more: float = 0.0) -> None:
        super().__init__()
        self.more = more

    def forward(self, guidance: Tensor, target: Tensor) -> Any:
        return type("Output", (), {"output": target + self.more})


def depth_task(folder: Path, *overrides: str) -> DepthUpsampling:
    task = build_task(load(tiny_filter_file(folder), overrides))
    assert isinstance(task, DepthUpsampling)
    return task


def texture_task(folder: Path, *overrides: str) -> TextureRemoval:
    task = build_task(load(tiny_filter_file(folder, "texture_removal"), overrides))
    assert isinstance(task, TextureRemoval)
    return task


def with_holes(pair: Pair) -> Pair:
    """Take the known values away from a part, and leave nonsense there."""
    target, valid = pair.target.copy(), pair.valid.copy()
    target[4:9, 5:30], valid[4:9, 5:30] = 1e6, False
    return pair._replace(target=target, valid=valid)


class Holed:
    """Pairs in which every target has a hole."""

    def __init__(self, pairs: Any) -> None:
        self._pairs = pairs

    def read(self, index: int) -> Pair:
        return with_holes(self._pairs.read(index))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pairs, name)


def test_a_hole_counts_for_nothing_in_loss_weight_and_figures(tmp_path: Path) -> None:
    task = depth_task(tmp_path, "task.data.crop=null", "task.border=0")
    task.training, task.validation = Holed(task.training), Holed(task.validation)  # type: ignore[assignment]
    batch = task.batch(np.array([0]), split="training", step=1)
    height, width = batch["valid"].shape[2:]
    assert task.weight(batch) == height * width - 5 * 25
    loss = task.step(Echo(), batch).loss_sum
    batch["truth"][~batch["valid"]] = 777.0
    batch["input"][~batch["valid"]] = -777.0
    assert task.step(Echo(), batch).loss_sum == loss
    assert batch["truth"][batch["valid"]].min() >= 0
    assert batch["truth"][batch["valid"]].max() == 1
    validation = task.batch(np.array([0]), split="validation", step=1)
    before = task.evaluate(Echo(), validation)
    validation["truth"][~validation["valid"]] = 777.0
    assert task.evaluate(Echo(), validation) == before


def test_the_error_is_that_of_a_constant_in_its_units(tmp_path: Path) -> None:
    """Truth = input: an output that is off by 0.25 has an RMSE of 0.25 of the depth's range, in centimetres."""
    task = depth_task(tmp_path)
    batch = task.batch(np.array([0, 1, 2]), split="validation", step=1)
    batch["truth"] = batch["input"].clone()
    sums = task.evaluate(Echo(0.25), batch)
    expected = sum(0.25 * float(units) for units in batch["units"])
    assert float(sums["rmse"][0]) == pytest.approx(expected, rel=1e-6)
    assert float(sums["rmse"][1]) == 3
    pair = task.validation.read(0)
    span = float(pair.target[pair.valid].max() - pair.target[pair.valid].min())
    assert float(batch["units"][0]) == pytest.approx(100 * span, rel=1e-6)


def test_the_border_is_left_out(tmp_path: Path) -> None:
    task = depth_task(tmp_path)
    batch = task.batch(np.array([0]), split="validation", step=1)
    before = task.evaluate(Echo(), batch)["rmse"][0]
    batch["truth"][..., :6, :] = batch["truth"][..., :, -6:] = 100.0
    assert task.evaluate(Echo(), batch)["rmse"][0] == before
    batch["truth"][..., 6, 6] = 100.0
    assert task.evaluate(Echo(), batch)["rmse"][0] > before


def test_the_input_alone_is_the_bicubic_baseline(tmp_path: Path) -> None:
    task = depth_task(tmp_path)
    sums = task.evaluate(Echo(), task.batch(np.array([0, 1, 2]), split="validation", step=1))
    assert float(sums["bicubic_rmse"][0]) == pytest.approx(float(sums["rmse"][0]), rel=1e-6)
    assert float(sums["bicubic_rmse"][1]) == 3
    assert {"joint_bilateral_rmse", "guided_filter_rmse"} < sums.keys()


def test_a_figure_does_not_depend_on_its_neighbours_in_the_batch(tmp_path: Path) -> None:
    """Images of other sizes pad a batch; each is cut back before the network sees it."""
    task = depth_task(tmp_path, "task.data.validation_sources.0.stop=101")
    model = task.build_model().eval()
    small = task._validation_sample(0)
    large = {key: np.pad(value, [(0, 9), (0, 7), (0, 0)][: value.ndim], mode="edge") if value.ndim > 1 else value
             for key, value in small.items()}  # fmt: skip
    with torch.no_grad():
        alone = task.evaluate(model, as_batch([small]))
        beside = task.evaluate(model, as_batch([small, large]))
        other = task.evaluate(model, as_batch([large]))
    for name in ("loss", "rmse"):
        assert float(beside[name][0]) == pytest.approx(float(alone[name][0] + other[name][0]), rel=1e-6)


def test_a_crops_input_is_what_the_whole_images_would_be_there(tmp_path: Path) -> None:
    whole = depth_task(tmp_path, "task.data.crop=null", "task.data.flips=false")
    cut = depth_task(tmp_path, "task.data.flips=false")
    image = whole.batch(np.array([3]), split="training", step=5)
    crop = cut.batch(np.array([3]), split="training", step=5)
    rows_, columns = image["truth"].shape[2] - 24, image["truth"].shape[3] - 24
    places = [
        (top, left)
        for top in range(rows_ + 1)
        for left in range(columns + 1)
        if torch.equal(image["truth"][..., top : top + 24, left : left + 24], crop["truth"])
    ]
    assert places
    top, left = places[0]
    for key in ("input", "guidance", "valid"):
        assert torch.equal(image[key][..., top : top + 24, left : left + 24], crop[key])


@pytest.mark.parametrize("kind", ["depth_upsampling", "texture_removal"])
def test_samples_are_a_function_of_seed_step_and_id(tmp_path: Path, kind: str) -> None:
    task = build_task(load(tiny_filter_file(tmp_path, kind)))
    again = build_task(load(tiny_filter_file(tmp_path, kind)))
    first = task.batch(np.array([2, 4]), split="training", step=7)
    one = again.batch(np.array([4]), split="training", step=7)
    for key, value in one.items():
        assert torch.equal(first[key][1:], value), key
    assert not torch.equal(again.batch(np.array([4]), split="training", step=8)["truth"], one["truth"])
    other = build_task(load(tiny_filter_file(tmp_path, kind), ["task.data.seed=1"]))
    assert not torch.equal(other.batch(np.array([4]), split="training", step=7)["truth"], one["truth"])


def test_noise_has_its_deviation_and_spares_the_truth(tmp_path: Path) -> None:
    task = texture_task(tmp_path, "task.data.crop=null", "task.data.noise=0.2")
    noise = [b["input"] - b["truth"] for b in (task.batch(np.array([n]), split="training", step=1) for n in range(6))]
    values = torch.cat([n.flatten() for n in noise])
    assert float(values.std()) == pytest.approx(0.2, rel=0.03)  # 7,680 values: one standard error is 0.8 %
    assert abs(float(values.mean())) < 3 * 0.2 / math.sqrt(len(values))


def test_psnr_is_that_of_a_constant_error(tmp_path: Path) -> None:
    """An error of 0.1 everywhere is 20 dB, over the image and along edges; none at all is 100 dB."""
    task = texture_task(tmp_path, "task.iterations=1", "task.border=0")
    batch = task.batch(np.array([0]), split="validation", step=1)
    truth, valid = batch["truth"], batch["valid"]
    assert ratios(truth + 0.1, truth, valid).tolist() == pytest.approx([20, 20], abs=1e-4)
    assert ratios(truth, truth, valid).tolist() == [100, 100]
    assert ratios(truth, truth, torch.zeros_like(valid)).tolist() == [100, 100]
    assert ratios(truth * math.nan, truth, valid).isnan().all()  # nothing that is broken is perfect
    sums = task.evaluate(Echo(), batch)
    assert float(sums["psnr"][0]) == pytest.approx(float(sums["input_psnr"][0]), abs=1e-4)
    assert float(sums["edge_psnr"][0]) == pytest.approx(float(sums["input_edge_psnr"][0]), abs=1e-4)


def without_values(batch: dict[str, Tensor], index: int) -> None:
    """Leave an image no valid pixel but some in its border."""
    batch["valid"][index, :, 6:-6, 6:-6] = False


def test_an_image_without_known_depth_counts_for_nothing(tmp_path: Path) -> None:
    task = depth_task(tmp_path, "task.other_guidance=true")
    both, one = (task.batch(np.array(ids), split="validation", step=1) for ids in ([0, 1], [1]))
    without_values(both, 0)
    found, expected = (task.evaluate(Echo(0.25), batch) for batch in (both, one))
    assert {"rmse", "constant_guidance_rmse", "bicubic_rmse", "guided_filter_rmse"} < found.keys()
    assert {name: found[name] for name in found if name != "loss"} == {
        name: expected[name] for name in expected if name != "loss"
    }
    assert float(found["rmse"][1]) == 1


def test_an_image_without_edges_has_no_ratio_along_them(tmp_path: Path) -> None:
    task = texture_task(tmp_path, "task.iterations=1")
    both, one = (task.batch(np.array(ids), split="validation", step=1) for ids in ([0, 1], [1]))
    both["truth"][0] = 0.5
    found, expected = (task.evaluate(Echo(0.1), batch) for batch in (both, one))
    edge = [name for name in found if name.endswith("edge_psnr")]
    assert len(edge) == 4
    assert {name: found[name] for name in edge} == {name: expected[name] for name in edge}
    assert all(float(found[name.replace("edge_", "")][1]) == 2 for name in edge)
    without_values(both, 0)
    assert all(float(task.evaluate(Echo(0.1), both)[name.replace("edge_", "")][1]) == 1 for name in edge)


def test_a_figure_of_no_image_is_null_in_the_log(tmp_path: Path) -> None:
    """And ends neither the sums nor the console line."""
    task = depth_task(tmp_path)
    batch = task.batch(np.array([0]), split="validation", step=1)
    without_values(batch, 0)
    sums = task.evaluate(Echo(0.25), batch)
    assert all(bool(torch.stack(pair).isfinite().all()) for pair in sums.values())
    means = Accumulator()
    means.add(sums)
    figures = task.validation_report(means.means())
    written = strict(figures)
    assert written["validation_rmse"] is None
    assert written["validation_bicubic_rmse"] is None
    assert written["validation_loss"] > 0
    assert "  rmse   -   " in console_line(1, 2, figures, 0.0)


def test_iterations_apply_the_filter_to_its_own_output(tmp_path: Path) -> None:
    once, thrice = texture_task(tmp_path, "task.iterations=1"), texture_task(tmp_path, "task.iterations=3")
    image = next(images_of(once.batch(np.array([0]), split="validation", step=1)))
    assert torch.equal(once._filtered(Echo(0.5), image)[0], image.input + 0.5)
    torch.testing.assert_close(thrice._filtered(Echo(0.5), image)[0], image.input + 1.5)


def test_edges_lie_where_brightness_steps() -> None:
    image = torch.zeros(1, 3, 9, 20)
    image[..., 10:] = 0.5
    assert edges(image)[0, 0].any(dim=0).nonzero().flatten().tolist() == [7, 8, 9, 10, 11]
    assert not edges(torch.linspace(0, 1, 20).expand(1, 3, 9, 20)).any()  # 0.05 per pixel is a slope


def test_the_steepest_pixel_is_valid_and_inside() -> None:
    truth, valid = torch.zeros(1, 1, 60, 80), torch.ones(1, 1, 60, 80, dtype=torch.bool)
    truth[..., 40:] = 1.0
    valid[..., :30, :] = False
    row, column = steepest(Images(truth, truth, truth, valid))
    assert row > 30
    assert column in (39, 40)
    assert steepest(Images(*[x[..., :2, :1] for x in (truth, truth, truth, valid)])) == (1, 0)


def test_a_shifted_guidance_shows_what_was_above_to_the_left() -> None:
    image = torch.arange(24.0).reshape(4, 6).expand(1, 3, 4, 6)
    moved = [[0, 0, 0, 1, 2, 3], [0, 0, 0, 1, 2, 3], [0, 0, 0, 1, 2, 3], [6, 6, 6, 7, 8, 9]]
    assert shifted(image, 2)[0, 2].tolist() == moved


def test_other_guidances_are_measured_where_asked(tmp_path: Path) -> None:
    task = depth_task(tmp_path, "task.other_guidance=true", "task.baselines=false")
    with torch.no_grad():
        sums = task.evaluate(task.build_model().eval(), task.batch(np.array([0]), split="validation", step=1))
    figures = [float(sums[name][0]) for name in ("rmse", "constant_guidance_rmse", "shifted_guidance_rmse")]
    assert len(set(figures)) == 3
    assert "bicubic_rmse" not in sums


def test_images_of_different_sizes_want_a_crop_or_batches_of_one(tmp_path: Path) -> None:
    sources = (
        "task.data.sources=[{path: procedural-scenes, stop: 2, size: [32, 40]}, "
        "{path: procedural-scenes, stop: 2, size: [40, 32]}]"
    )
    with pytest.raises(ConfigError, match=r"micro_batch_size: 2 images of different sizes.*task\.data\.crop"):
        depth_task(tmp_path, sources, "task.data.crop=null").check()
    depth_task(tmp_path, sources, "task.data.crop=null", "micro_batch_size=1").check()
    depth_task(tmp_path, sources).check()
    with pytest.raises(ConfigError, match=r"task\.data\.crop: 64 exceeds the size of scene-0000"):
        depth_task(tmp_path, "task.data.crop=64").check()


@pytest.mark.parametrize("section", ["sources", "validation_sources"])
def test_an_image_smaller_than_the_scale_is_told_before_it_is_read(tmp_path: Path, section: str) -> None:
    sources = "[{path: procedural-scenes, stop: 2}, {path: procedural-scenes, start: 4, stop: 5, size: [40, 32]}]"
    settings = [f"task.data.{section}={sources}", "task.data.crop=null", "micro_batch_size=1"]
    depth_task(tmp_path, *settings, "task.data.scale=32").check()
    with pytest.raises(ConfigError) as error:
        depth_task(tmp_path, *settings, "task.data.scale=33").check()
    told = f"task.data.scale: 33 is too large for scene-00004 (40 x 32 pixels) in task.data.{section}; write 32 or less"
    assert sum(fault.startswith(told) for fault in error.value.faults) == 1, error.value.faults


def test_targets_have_the_channels_that_a_task_can_use(tmp_path: Path) -> None:
    textures = "[{path: procedural-textures, stop: 2, size: [32, 40]}]"
    with pytest.raises(ConfigError, match="3 channels"):
        depth_task(tmp_path, f"task.data.sources={textures}").check()
    with pytest.raises(ConfigError, match=r"task\.data\.validation_sources: the target .* has 3 channels"):
        depth_task(tmp_path, f"task.data.validation_sources={textures}").check()
    with pytest.raises(ConfigError, match="not in color"):
        texture_task(tmp_path, "task.data.validation_sources=[{path: procedural-scenes, stop: 2}]").check()


@pytest.mark.parametrize(
    ("sources", "invalid"),
    [
        ("[{path: procedural-scenes, stop: 6}]", "zero"),
        ("[nowhere]", "zero"),
        ("[{path: nowhere, missing: null}]", "none"),
        ("[{path: procedural-scenes, stop: 6}, {path: nowhere, missing: null}]", "none"),
        ("[{path: nowhere, missing: null}, {path: elsewhere}]", "zero"),
        ("[{path: nowhere, missing: 65535}, {path: elsewhere, missing: 0}]", "zero"),
        ("[{path: nowhere, missing: null}, {path: elsewhere, missing: 65535}]", 65535),
    ],
)
def test_the_processor_takes_for_holes_what_the_training_data_have_so(
    tmp_path: Path, sources: str, invalid: str | float
) -> None:
    """Without a look at the data, which are not needed to export; written over what the model itself writes."""
    task = depth_task(tmp_path, f"task.data.sources={sources}")
    task.build_model().save_pretrained(tmp_path / "out")
    task.save_assets(tmp_path / "out")
    processor = DKNImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.invalid, processor.scale) == (invalid, 4)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["purpose"]["invalid"] == invalid


@pytest.mark.parametrize(
    ("kind", "purpose"),
    [
        ("depth_upsampling", {"scale": 4, "downsampling": "bicubic", "unit": "cm", "units_per_value": 100}),
        ("texture_removal", {"scale": 1, "noise": 0.1, "units_per_value": 1}),
    ],
)
def test_an_exported_filter_states_what_it_was_trained_for(tmp_path: Path, kind: str, purpose: dict[str, Any]) -> None:
    given = ["task.data.unit=cm"] if kind == "depth_upsampling" else []
    model = build_task(load(tiny_filter_file(tmp_path, kind), given)).model_to_load()
    assert isinstance(model, DKNModel)
    unknown = dict.fromkeys(("downsampling", "noise", "unit", "value_range"))
    assert model.config.purpose == {**unknown, "task": kind, "invalid": "zero", **purpose}


ELSEWHERE = """
import json, sys
import numpy, torch
from transformers import AutoImageProcessor, AutoModel
assert not any(name in sys.modules for name in ("train", "modeling", "deepspeed", "datasets", "cv2"))
folder, images = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
found = numpy.load(images)
with torch.no_grad():
    output = model(torch.from_numpy(found["guidance"]), torch.from_numpy(found["input"])).output.numpy()
squares = ((output - found["truth"]) * found["units"])[..., 6:-6, 6:-6] ** 2
sharp = model.filter(found["guidance"][0].transpose(1, 2, 0), found["input"][0, 0][::4, ::4])
print(json.dumps({"rmse": float(numpy.sqrt(squares.mean())), "shape": list(sharp.shape)}))
"""


def test_an_exported_filter_gives_the_runs_figures_elsewhere(ranks: Ranks, tmp_path: Path) -> None:
    one = ["task.data.validation_sources.0.stop=101", "engine.zero_stage=3"]
    ranks(2, train, str(tiny_filter_file(tmp_path)), one)
    run, out = tmp_path / "runs/tiny", tmp_path / "out"
    assert export.main([str(run), str(out)]) == 0
    task = build_task(read_run(run))
    batch = task.batch(np.array([0]), split="validation", step=0)
    arrays = {key: batch[key].numpy() for key in ("guidance", "input", "truth", "units")}
    np.savez(tmp_path / "images.npz", **arrays)  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(out), str(tmp_path / "images.npz")],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    last = [row for row in rows(tmp_path) if "validation_rmse" in row][-1]
    assert found["rmse"] == pytest.approx(last["validation_rmse"], rel=1e-5)
    assert found["shape"][:2] == list(batch["truth"].shape[2:])
    assert "FDKN" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("depth_upsampling", 'sharp = model.filter(Image.open("guidance.png"), Image.open("target.png"))'),
        ("texture_removal", "smooth = model.filter(image, image, iterations=4)"),
    ],
)
def test_the_card_of_a_filter_shows_its_own_task(tmp_path: Path, kind: str, call: str) -> None:
    config = load(tiny_filter_file(tmp_path, kind))
    card = model_card(build_task(config), config, tmp_path, 1)
    usage = card.split("```python\n")[1].split("\n```")[0]
    assert usage.splitlines()[-2:] == [call, ON_FILES.strip()]
    compile(usage, "README.md", "exec")
    assert "target.png" in card if kind == "depth_upsampling" else "target.png" not in card


def test_a_filter_is_exported_in_fp32_and_writes_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs/tiny"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(tiny_filter_file(tmp_path).read_text())
    assert export.main([str(run), str(tmp_path / "out"), "--prompt", "hello"]) == 2
    assert "--prompt: a depth_upsampling model does not generate text" in capsys.readouterr().err


def test_a_run_leaves_images_that_the_report_reads(ranks: Ranks, tmp_path: Path) -> None:
    ranks(1, train, str(tiny_filter_file(tmp_path)), ["steps=3"])
    folder = tmp_path / "runs/tiny/images/step_000003"
    (path,) = folder.iterdir()
    with np.load(path, allow_pickle=False) as arrays:
        found = dict(arrays)
    height, width = 32, 40
    assert found["guidance"].shape == (height, width, 3)
    assert found["guidance"].dtype == np.uint8
    assert all(found[key].shape == (height, width, 1) for key in ("input", "output", "truth"))
    assert found["valid"].shape == found["offset_length"].shape == (height, width)
    assert found["positions"].shape == (1, 9, 2)
    assert found["weights"].shape == (1, 9)
    assert abs(float(found["weights"].sum())) < 1e-6  # residual: they sum to zero
    row, column = found["pixel"][0]
    assert np.abs(found["positions"][0] - [row, column]).max() < 8  # offsets are small at first, and a window reaches 7
