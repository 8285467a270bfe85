"""Saliency up-sampling and cross-modality restoration, sets of validation sources, noise, and real inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.tiny_filter import tiny_filter_file
from train.config.errors import ConfigError
from train.config.load import load
from train.export.card import model_card
from train.observe.accumulator import Accumulator
from train.observe.console import console_line
from train.tasks import build_task
from train.tasks.joint_filter.joint_filtering import JointFiltering
from train.tasks.joint_filter.saliency_upsampling import f_measure, precision_and_recall


class Echo(nn.Module):
    """A filter that gives its input back."""

    def forward(self, guidance: Tensor, target: Tensor) -> Any:
        return type("Output", (), {"output": target})


def filter_task(folder: Path, kind: str, *overrides: str) -> JointFiltering[Any]:
    task = build_task(load(tiny_filter_file(folder, kind), overrides))
    assert isinstance(task, JointFiltering)
    return task


def report(task: JointFiltering[Any], model: nn.Module) -> dict[str, float]:
    """Return the metrics of all validation samples, one by one."""
    means = Accumulator()
    for sample in range(task.num_validation_samples):
        means.add(task.evaluate(model, task.batch(np.array([sample]), split="validation", step=1)))
    return task.validation_report(means.means())


# ------------------------------------------------------------------------------------------------------------ saliency


def test_precision_and_recall_are_those_counted_by_hand() -> None:
    """Four pixels, two of them salient: at 128 one of each is found, above 0.8 only a salient one."""
    found, salient = torch.tensor([0.9, 0.3, 0.6, 0.0]), torch.tensor([True, True, False, False])
    precision, recall = precision_and_recall(found, salient)
    assert precision[[0, 50, 128, 204, 255]].tolist() == pytest.approx([0.5, 2 / 3, 0.5, 1, 0])
    assert recall[[0, 50, 128, 204, 255]].tolist() == pytest.approx([1, 1, 0.5, 0.5, 0])
    assert float(f_measure(torch.tensor(0.5), torch.tensor(1.0))) == pytest.approx(1.3 * 0.5 / 1.15)
    assert float(f_measure(torch.tensor(0.0), torch.tensor(0.0))) == 0


def test_thresholds_agree_with_a_comparison_at_each(tmp_path: Path) -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(1))
    salient = values + 0.4 * torch.rand(500, generator=torch.Generator().manual_seed(2)) > 0.7
    precision, recall = precision_and_recall(values, salient)
    for threshold in range(256):
        found = (255 * values).round() >= threshold
        hits = float((found & salient).sum())
        assert float(precision[threshold]) == pytest.approx(hits / max(1, int(found.sum())))
        assert float(recall[threshold]) == pytest.approx(hits / int(salient.sum()))


def test_a_perfect_map_has_no_error_and_an_f_measure_of_1(tmp_path: Path) -> None:
    task = filter_task(tmp_path, "saliency_upsampling")
    batch = task.batch(np.array([0, 1, 2]), split="validation", step=1)
    assert set(batch["truth"].unique().tolist()) == {0.0, 1.0}
    batch["input"] = batch["truth"].clone()
    metrics = task.validation_report({name: float(s / w) for name, (s, w) in task.evaluate(Echo(), batch).items()})
    assert metrics["validation_mae"] == 0
    assert metrics["validation_f_measure"] == pytest.approx(1)
    assert metrics["validation_bicubic_mae"] > 0
    assert list(metrics)[:3] == ["validation_loss", "validation_mae", "validation_f_measure"]
    assert {f"validation_{m}_{n}" for m in task.methods for n in ("mae", "f_measure")} < metrics.keys()


def test_the_input_alone_is_bicubic_for_masks(tmp_path: Path) -> None:
    metrics = report(filter_task(tmp_path, "saliency_upsampling"), Echo())
    for name in ("mae", "f_measure"):
        assert metrics[f"validation_{name}"] == pytest.approx(metrics[f"validation_bicubic_{name}"], rel=1e-6)


def test_masks_of_a_folder_have_no_holes_and_their_void_has(tmp_path: Path) -> None:
    """PASCAL VOC's palette masks: any class is salient, 255 is not known."""
    for number in range(2):
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), (9, 90, 200)).save(tmp_path / f"JPEGImages/2007_{number}.jpg")
        labels = np.zeros((32, 40), np.uint8)
        labels[4:20, 6:30], labels[4, 6:30] = 15, 255
        mask = Image.fromarray(labels).convert("P")
        mask.putpalette([0, 0, 0, 128, 0, 0] + [7] * 762)
        mask.putdata(labels.ravel().tolist())
        mask.save(tmp_path / f"SegmentationClass/2007_{number}.png")
    source = f"path: {tmp_path}, guidance: JPEGImages/*.jpg, target: SegmentationClass/*.png"
    key = "task.data.validation_sources"
    with pytest.raises(ConfigError, match=rf"{key}.0.missing: 0, the default, is the background of a mask"):
        filter_task(tmp_path, "saliency_upsampling", f"{key}=[{{{source}}}]")
    task = filter_task(tmp_path, "saliency_upsampling", f"{key}=[{{{source}, missing: 255}}]")
    task.check()
    batch = task.batch(np.array([0]), split="validation", step=1)
    assert int(batch["truth"].sum()) == 15 * 24
    assert int((~batch["valid"]).sum()) == 24


# --------------------------------------------------------------------------------------------------------- restoration


def test_noise_of_validation_is_its_own_and_the_same_each_time(tmp_path: Path) -> None:
    task = filter_task(
        tmp_path, "cross_modality_restoration", "task.data.validation_noise=0.2", "task.other_noise=[0.05]"
    )
    assert list(task.validation_sets) == [3, 3]
    first, again = (task.batch(np.array([0, 1, 2]), split="validation", step=n) for n in (1, 9))
    assert torch.equal(first["input"], again["input"])
    noise = first["input"] - first["truth"]
    assert float(noise.std()) == pytest.approx(0.2, rel=0.05)  # 3,840 values: one standard error is 1.1 %
    assert not torch.equal(noise[0], noise[1])
    less = task.batch(np.array([3, 4, 5]), split="validation", step=1)
    torch.testing.assert_close(less["input"] - less["truth"], noise / 4, atol=1e-6, rtol=0)
    assert torch.equal(less["truth"], first["truth"])
    other = filter_task(tmp_path, "cross_modality_restoration", "task.data.validation_noise=0.2", "task.data.seed=1")
    assert not torch.equal(other.batch(np.array([0]), split="validation", step=1)["input"], first["input"][:1])


def test_other_levels_of_noise_have_metrics_of_their_own(tmp_path: Path) -> None:
    task = filter_task(tmp_path, "cross_modality_restoration", "task.other_noise=[0.05]", "task.border=0")
    metrics = report(task, Echo())
    assert metrics["validation_psnr"] == pytest.approx(20, abs=0.3)  # noise of 0.1
    assert metrics["validation_noise_0.05_psnr"] == pytest.approx(26, abs=0.3)
    assert metrics["validation_input_noise_0.05_psnr"] == pytest.approx(metrics["validation_noise_0.05_psnr"], abs=1e-4)
    assert metrics["validation_guided_filter_psnr"] > metrics["validation_psnr"]
    assert filter_task(tmp_path, "cross_modality_restoration").validation_sets == [3]


def test_our_metrics_come_first_and_with_units(tmp_path: Path) -> None:
    task = filter_task(tmp_path, "texture_removal")
    metrics = report(task, Echo())
    assert list(metrics)[:4] == [f"validation_{n}" for n in ("loss", "psnr", "edge_psnr", "input_psnr")]
    line = console_line(1, 2, metrics, 0.0, task.metric_unit)
    assert f"  psnr {metrics['validation_psnr']:7.4f} dB  edge_psnr" in line
    depth = filter_task(tmp_path, "depth_upsampling", "task.data.unit=cm")
    assert (depth.metric_unit("validation_rmse"), depth.metric_unit("validation_loss")) == ("cm", None)


# ------------------------------------------------------------------------------------------------------ sets of sources

TWO = (
    "task.data.validation_sources=["
    "{path: procedural-scenes, size: [32, 40], start: 100, stop: 102, units_per_value: 100, label: near UNIT_A},"
    "{path: procedural-scenes, size: [40, 32], start: 200, stop: 203, label: far UNIT_B}]"
)


def test_each_label_has_metrics_beside_the_mean(tmp_path: Path) -> None:
    task = filter_task(tmp_path, "depth_upsampling", TWO.replace(" UNIT_A", "").replace(" UNIT_B", ""))
    metrics = report(task, Echo())
    near, far, both = (metrics[f"validation_{name}rmse"] for name in ("near_", "far_", ""))
    assert near > 10 * far
    assert both == pytest.approx((2 * near + 3 * far) / 5, rel=1e-6)
    assert metrics["validation_bicubic_far_rmse"] == pytest.approx(far, rel=1e-6)
    assert list(metrics)[:2] == ["validation_loss", "validation_rmse"]


def test_sources_in_different_units_have_no_mean_error(tmp_path: Path) -> None:
    sources = TWO.replace(" UNIT_A", ", unit: cm").replace(" UNIT_B", ", unit: m")
    task = filter_task(tmp_path, "depth_upsampling", sources)
    metrics = report(task, Echo())
    assert not {"validation_rmse", "validation_bicubic_rmse"} & metrics.keys()
    assert {"validation_loss", "validation_near_rmse", "validation_bicubic_far_rmse"} < metrics.keys()
    assert task.metric_unit("validation_bicubic_near_rmse") == "cm"
    assert task.metric_unit("validation_far_rmse") == "m"
    with pytest.raises(ConfigError, match=r"validation_sources\.0\.label: missing although its unit is set"):
        filter_task(tmp_path, "depth_upsampling", sources.replace("label: near, ", ""))


# ----------------------------------------------------------------------------------------------- noise and real inputs


def test_depth_has_noise_where_a_sensor_adds_it(tmp_path: Path) -> None:
    """In the small map: up-sampled again, its noise is smooth."""
    clean, noisy = (
        filter_task(tmp_path, "depth_upsampling", f"task.data.noise={n}", f"task.data.validation_noise={n / 2}")
        for n in (0.0, 0.2)
    )
    for split, deviation in (("training", 0.2), ("validation", 0.1)):
        pair = [task.batch(np.array([0, 1, 2]), split=split, step=1) for task in (clean, noisy)]  # type: ignore[arg-type]
        noise = pair[1]["input"] - pair[0]["input"]
        assert torch.equal(pair[0]["truth"], pair[1]["truth"])
        assert 0.5 * deviation < float(noise.std()) < deviation
        assert float(noise.diff(dim=3).std()) < 0.6 * float(noise.std())


def real_inputs(folder: Path, *, size: tuple[int, int] = (8, 10)) -> str:
    """Write two pairs with real inputs; returns their source."""
    for number in range(2):
        values = np.random.default_rng(number).integers(1, 255, (32, 40, 3), np.uint8)
        for name, image in (("color", values), ("depth", values[:, :, 0]), ("lr", np.full(size, 100, np.uint8))):
            (folder / "set").mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"set/{number}_{name}.png")
    patterns = "guidance: '*_color.png', target: '*_depth.png', input: '*_lr.png'"
    return f"task.data.validation_sources=[{{path: {folder / 'set'}, {patterns}}}]"


def test_a_real_input_is_read_and_up_sampled_instead_of_made(tmp_path: Path) -> None:
    task = filter_task(tmp_path, "depth_upsampling", real_inputs(tmp_path))
    task.check()
    batch = task.batch(np.array([0]), split="validation", step=1)
    truth = task.validation.read(0).target
    expected = (100 - truth.min()) / (truth.max() - truth.min())
    assert torch.allclose(batch["input"], torch.tensor(float(expected)))
    assert batch["input"].shape == batch["truth"].shape


@pytest.mark.parametrize(
    ("size", "fault"),
    [
        (
            (16, 20),
            r"the input of 0 has 16 x 20 pixels, 1 / 2 of the target's 32 x 40 and not 1 / 4; set task.data.scale",
        ),
        (
            (10, 8),
            r"validation_sources.0.input: .*0_lr.png has 10 x 8 pixels, which is no whole fraction of the 32 x 40",
        ),
    ],
)
def test_a_real_input_of_another_scale_or_aspect_is_refused(tmp_path: Path, size: tuple[int, int], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        filter_task(tmp_path, "depth_upsampling", real_inputs(tmp_path, size=size)).check()


@pytest.mark.parametrize("kind", ["saliency_upsampling", "cross_modality_restoration"])
def test_an_export_of_maps_and_photos_has_no_holes_at_zero(tmp_path: Path, kind: str) -> None:
    task = filter_task(tmp_path, kind)
    task.save_assets(tmp_path)
    assert '"invalid": "none"' in (tmp_path / "preprocessor_config.json").read_text()


def test_a_card_names_the_noise_of_training(tmp_path: Path) -> None:
    config = load(tiny_filter_file(tmp_path, "depth_upsampling"))
    assert "it sharpens noise" in model_card(build_task(config), config, tmp_path, 1)
    config = load(tiny_filter_file(tmp_path, "depth_upsampling"), ["task.data.noise=0.02"])
    assert "a standard deviation of 0.02 of the range" in model_card(build_task(config), config, tmp_path, 1)
