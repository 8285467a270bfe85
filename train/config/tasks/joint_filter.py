"""Settings of the joint image filters: network, image pairs, and the tasks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from train.config.setting import section, setting

Downsampling = Literal[
    "bicubic", "bicubic_torch", "nearest_left_top", "nearest_center", "nearest_right_bottom", "block_mean"
]


@section
class FilterConfig:
    """Joint image filter, with the fields and defaults of `modeling.joint_filter`'s DKNConfig."""

    architecture: Literal["fdkn", "dkn"] = setting(
        "Network: fdkn is the paper's fast variant, dkn its slow one", default="fdkn"
    )
    residual: bool = setting("Add the filtered image to the target; kernels then sum to 0", default=True)
    kernel_size: int = setting("Samples along each side of a kernel; odd", default=3, at_least=1, at_most=101)
    window_size: int = setting(
        "Side of the square around each pixel from which samples are read; odd",
        default=15,
        at_least=1,
        unit="pixels",
        at_most=1001,
    )
    sampling: Literal["centered", "compat"] = setting(
        "Sampling positions; compat uses the displaced taps of the authors' weights", default="centered"
    )
    guidance: bool = setting("Predict kernels from the guidance as well as the target", default=True)
    guidance_channels: int = setting("Channels of the guidance; 3, for RGB", default=3, at_least=1, at_most=1024)
    target_channels: int = setting(
        "Channels of the target; 1, as channels are filtered separately", default=1, at_least=1, at_most=1024
    )


@section
class PairSourceConfig:
    """Source of image pairs, guidance and target. A plain string in YAML is short for `{path: ...}`."""

    shorthand: ClassVar[str] = "path"

    path: str = setting(
        "procedural-scenes, -textures, -objects or -modalities; a folder of pairs; a folder of NYU's arrays, or its "
        "labeled .mat",
        resume="by_fingerprint",
    )
    guidance: str | None = setting(
        "Guidance files, as a pattern below a folder of pairs (RGB/*.png)", default=None, null="detected by name"
    )
    target: str | None = setting(
        "Target files, as a pattern; partners are files whose wildcards match the same text, or have equal names",
        default=None,
        null="detected by name",
    )
    input: str | None = setting(
        "Files of real inputs, low-resolution or noisy, as a pattern; in the target's values",
        default=None,
        null="made from the target",
    )
    split: Literal["training", "test"] | None = setting(
        "Split of NYU's arrays or .mat, which require one", default=None, null="other sources"
    )
    start: int | None = setting(
        "First pair in order of names, as in a Python slice",
        default=None,
        null="the first",
        at_least=-(10**6),
        at_most=10**6,
    )
    stop: int | None = setting(
        "End of the pairs, exclusive, as in a Python slice",
        default=None,
        null="after the last",
        at_least=-(10**6),
        at_most=10**6,
    )
    size: tuple[int, int] | None = setting(
        "Height and width of procedural images", default=None, at_least=1, unit="pixels", null="192 x 256", at_most=8192
    )
    missing: float | None = setting(
        "Value that marks missing target pixels; non-finite pixels are always missing",
        default=0.0,
        null="no value",
        at_least=-3.4e38,
        at_most=3.4e38,
    )
    units_per_value: float = setting(
        "Factor from the file's values to the unit of reported errors: 100 turns meters into centimeters",
        default=1.0,
        at_least=1e-9,
        at_most=1e9,
    )
    label: str | None = setting(
        "Validation sources: sources with one label are a set with metrics of its own, as in validation_LABEL_rmse",
        default=None,
        null="the end of its path, if there are several sources",
    )
    unit: str | None = setting(
        "Unit of a validation source's errors, where sources differ; then no mean is taken over them",
        default=None,
        null="task.data.unit",
    )


@section
class PairDataConfig:
    """Training and validation pairs of a joint image filter."""

    sources: tuple[PairSourceConfig, ...] = setting("Pairs to train on")
    validation_sources: tuple[PairSourceConfig, ...] = setting("Pairs to validate on", evaluation=True, judges=True)
    unit: str | None = setting(
        "Unit of the errors, shown in plots", default=None, null="no unit", resume="free", report="ignored"
    )
    crop: int | None = setting(
        "Side of the random training crops", default=None, at_least=16, unit="pixels", null="whole images", at_most=8192
    )
    flips: bool = setting("Randomly flip training images left to right", default=False)
    seed: int = setting(
        "Seed of sample order, crops, flips and noise", default=0, at_least=0, report="seed", at_most=2**64 - 1
    )
    noise: float = setting(
        "Standard deviation of noise that is added to the input in training; the target has values from 0 to 1",
        default=0.0,
        at_least=0,
        at_most=1e3,
    )
    validation_noise: float = setting(
        "Standard deviation of noise that is added to the input in validation, the same at each",
        default=0.0,
        at_least=0,
        at_most=1e3,
        evaluation=True,
        judges=True,
    )


@section
class DepthDataConfig(PairDataConfig):
    """Pairs of color and depth, and how the low-resolution depth is produced."""

    scale: int = setting(
        "Factor by which the depth is downsampled (4, 8 and 16 in the paper)",
        default=8,
        at_least=2,
        evaluation=True,
        judges=True,
        at_most=1024,
    )
    downsampling: Downsampling = setting(
        "Downsampling method; bicubic is PIL's. Upsampling back to full size is always PIL's bicubic",
        default="bicubic",
        evaluation=True,
        judges=True,
    )


def _denoised() -> Any:
    return setting(
        "Standard deviation of the noise added to the depth, which is scaled to 0 to 1",
        default=0.1,
        at_least=1e-6,
        at_most=1e3,
    )


@section
class TextureDataConfig(PairDataConfig):
    """Training pairs of color and depth; validation pairs of textured and clean images."""

    noise: float = _denoised()


@section
class SaliencyDataConfig(DepthDataConfig):
    """Training pairs of color and depth; validation pairs of images and masks of what is salient."""

    salient_above: float = setting(
        "Mask values above this are salient: 127 for masks with gray edges",
        default=0.0,
        at_least=-3.4e38,
        at_most=3.4e38,
        evaluation=True,
        judges=True,
    )


@section
class RestorationDataConfig(PairDataConfig):
    """Training pairs of color and depth; validation pairs of two modalities, such as color and near infrared."""

    noise: float = _denoised()
    validation_noise: float = setting(
        "Standard deviation of the noise that is added to validation targets of 0 to 1; 0 where inputs have noise",
        default=0.1,
        at_least=0,
        at_most=1e3,
        evaluation=True,
        judges=True,
    )


@section
class JointFilterConfig:
    """Settings that all tasks of joint image filters have."""

    kind: str = setting("The task")
    model: FilterConfig = setting("The filter", factory=FilterConfig)
    data: PairDataConfig = setting("Its images")
    border: int = setting(
        "Width of the image border excluded from errors",
        default=6,
        at_least=0,
        unit="pixels",
        evaluation=True,
        judges=True,
        at_most=8192,
    )
    baselines: bool = setting(
        "Also evaluate other methods: the unfiltered input, the joint bilateral and the guided filter",
        default=True,
        resume="free",
        report="ignored",
        evaluation=True,
    )
    shown_images: int = setting(
        "Number of validation images saved to images/ at each evaluation",
        default=2,
        at_least=0,
        resume="free",
        report="ignored",
        at_most=1000,
    )
    shown_pixel: tuple[int, int] | None = setting(
        "Row and column of the pixel whose kernel is saved",
        default=None,
        at_least=0,
        null="the steepest edge",
        resume="free",
        report="ignored",
        at_most=10**6,
    )


@section
class DepthUpsamplingConfig(JointFilterConfig):
    """Depth upsampling guided by color: Kim, Ponce and Ham, IJCV 2021."""

    kind: Literal["depth_upsampling"] = setting("The task", default="depth_upsampling")
    data: DepthDataConfig = setting("Its images")
    other_guidance: bool = setting(
        "Also evaluate with a constant and with a shifted guidance",
        default=False,
        resume="free",
        report="ignored",
        evaluation=True,
    )


@section
class TextureRemovalConfig(JointFilterConfig):
    """Texture removal by a filter that learned to denoise depth: guidance and target are the same image."""

    kind: Literal["texture_removal"] = setting("The task", default="texture_removal")
    data: TextureDataConfig = setting("Its images")
    iterations: int = setting(
        "Number of times the filter is applied", default=4, at_least=1, evaluation=True, judges=True, at_most=1000
    )


@section
class SaliencyUpsamplingConfig(JointFilterConfig):
    """Upsampling of saliency maps by a filter that learned to upsample depth."""

    kind: Literal["saliency_upsampling"] = setting("The task", default="saliency_upsampling")
    data: SaliencyDataConfig = setting("Its images")
    border: int = setting(
        "Width of the image border excluded from errors",
        default=0,
        at_least=0,
        unit="pixels",
        evaluation=True,
        judges=True,
        at_most=8192,
    )


@section
class CrossModalityRestorationConfig(JointFilterConfig):
    """Removal of noise guided by another modality, by a filter that learned to denoise depth."""

    kind: Literal["cross_modality_restoration"] = setting("The task", default="cross_modality_restoration")
    data: RestorationDataConfig = setting("Its images")
    other_noise: tuple[float, ...] = setting(
        "Other levels of validation noise that are also evaluated, each as a set: validation_noise_0.05_psnr",
        default=(),
        at_least=0,
        at_most=1e3,
        resume="free",
        report="ignored",
        evaluation=True,
    )


# The registry of these tasks: a new kind is a class above, a line here, and a branch in `train.tasks.build_task`.
FilterTaskConfig = (
    DepthUpsamplingConfig | TextureRemovalConfig | SaliencyUpsamplingConfig | CrossModalityRestorationConfig
)
