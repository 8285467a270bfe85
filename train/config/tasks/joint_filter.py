"""Settings of the joint image filters: network, pairs of images, the two tasks."""

from __future__ import annotations

from typing import ClassVar, Literal

from train.config.setting import section, setting


@section
class FilterConfig:
    """A joint image filter; the fields and defaults of `modeling.joint_filter`'s DKNConfig."""

    architecture: Literal["fdkn", "dkn"] = setting("fdkn is the paper's fast one, dkn its slow one", default="fdkn")
    residual: bool = setting("Add the filtered image to the target; kernels then sum to 0", default=True)
    kernel_size: int = setting("Samples of a kernel along each side; odd", default=3, at_least=1)
    window_size: int = setting(
        "Side of the square around each pixel that samples are read from; odd", default=15, at_least=1, unit="pixels"
    )
    sampling: Literal["centered", "compat"] = setting(
        "Where samples are read; compat: at the displaced taps of the authors' weights", default="centered"
    )
    guidance: bool = setting("Let the guidance decide the kernels too, not the target alone", default=True)
    guidance_channels: int = setting("Channels of the guidance; 3, as it is RGB", default=3, at_least=1)
    target_channels: int = setting(
        "Channels of the target; 1, as channels are filtered one by one", default=1, at_least=1
    )


@section
class PairSourceConfig:
    """Images in pairs, guidance and target. A plain string in YAML is short for `{path: ...}`."""

    shorthand: ClassVar[str] = "path"

    path: str = setting(
        "procedural-scenes, procedural-textures, a folder of pairs, a folder of NYU's .npy arrays, or its labelled .mat"
    )
    guidance: str | None = setting(
        "Files of the guidance, a pattern below a folder of pairs (RGB/*.png)", default=None, null="found by name"
    )
    target: str | None = setting("Files of the target, likewise", default=None, null="found by name")
    split: Literal["training", "test"] | None = setting(
        "Which split of NYU's arrays or .mat; they need one", default=None, null="other sources"
    )
    start: int | None = setting(
        "First pair, in the order of their names, as in a Python slice", default=None, null="the first"
    )
    stop: int | None = setting("Where pairs end, as in a Python slice", default=None, null="after the last")
    size: tuple[int, int] | None = setting(
        "Height and width of procedural images", default=None, at_least=1, unit="pixels", null="192 x 256"
    )
    missing: float | None = setting(
        "Value of a target's unknown pixels; those that are not finite are always unknown", default=0.0, null="no value"
    )
    units_per_value: float = setting(
        "Errors are reported in units of this many to one of the file: 100 turns meters into centimeters",
        default=1.0,
        above=0,
    )


@section
class PairDataConfig:
    """Pairs that a joint image filter learns from, and those that it is validated on."""

    sources: tuple[PairSourceConfig, ...] = setting("Pairs to train on")
    validation_sources: tuple[PairSourceConfig, ...] = setting("Pairs to validate on", evaluation=True, judges=True)
    unit: str | None = setting(
        "Name of the errors' unit, for plots", default=None, null="no unit", resume="free", report="ignored"
    )
    crop: int | None = setting(
        "Side of the random squares to train on", default=None, at_least=16, unit="pixels", null="whole images"
    )
    flips: bool = setting("Flip training images left to right at random", default=False)
    seed: int = setting("Order of the samples, crops, flips and noise", default=0, at_least=0, report="seed")


@section
class DepthDataConfig(PairDataConfig):
    """How the low-resolution depth is made from the one that is known."""

    scale: int = setting(
        "Factor by which the depth is made smaller (the paper: 4, 8, 16)",
        default=8,
        at_least=2,
        evaluation=True,
        judges=True,
    )
    downsampling: Literal[
        "bicubic", "bicubic_torch", "nearest_left_top", "nearest_center", "nearest_right_bottom", "block_mean"
    ] = setting(
        "How it is made smaller; bicubic is PIL's, and all are brought back to full size by PIL's bicubic",
        default="bicubic",
        evaluation=True,
        judges=True,
    )


@section
class TextureDataConfig(PairDataConfig):
    """Training pairs are of color and depth; validation pairs of an image with texture and the same without."""

    noise: float = setting(
        "Standard deviation of the noise added to the depth, which ranges from 0 to 1", default=0.1, above=0
    )


@section
class DepthUpsamplingConfig:
    """Depth upsampling guided by color: Kim, Ponce and Ham, IJCV 2021."""

    kind: Literal["depth_upsampling"] = setting("The task", default="depth_upsampling")
    model: FilterConfig = setting("The filter", factory=FilterConfig)
    data: DepthDataConfig = setting("Its images")
    border: int = setting(
        "Pixels along the edges that errors leave out", default=6, at_least=0, evaluation=True, judges=True
    )
    baselines: bool = setting(
        "Measure bicubic, joint bilateral and guided filter as well",
        default=True,
        resume="free",
        report="ignored",
        evaluation=True,
    )
    other_guidance: bool = setting(
        "Measure as well what a constant and a shifted guidance would give",
        default=False,
        resume="free",
        report="ignored",
        evaluation=True,
    )
    shown_images: int = setting(
        "Validation images kept in images/ at each evaluation", default=2, at_least=0, resume="free", report="ignored"
    )
    shown_pixel: tuple[int, int] | None = setting(
        "Row and column of the pixel whose kernel is kept",
        default=None,
        at_least=0,
        null="the steepest edge",
        resume="free",
        report="ignored",
    )


@section
class TextureRemovalConfig:
    """Texture removal by a filter that learned to denoise depth: guidance and target are the same image."""

    kind: Literal["texture_removal"] = setting("The task", default="texture_removal")
    model: FilterConfig = setting("The filter", factory=FilterConfig)
    data: TextureDataConfig = setting("Its images")
    iterations: int = setting(
        "How many times the filter is applied", default=4, at_least=1, evaluation=True, judges=True
    )
    border: int = setting(
        "Pixels along the edges that errors leave out", default=6, at_least=0, evaluation=True, judges=True
    )
    baselines: bool = setting(
        "Measure the joint bilateral and the guided filter as well, applied as often",
        default=True,
        resume="free",
        report="ignored",
        evaluation=True,
    )
    shown_images: int = setting(
        "Validation images kept in images/ at each evaluation", default=2, at_least=0, resume="free", report="ignored"
    )
    shown_pixel: tuple[int, int] | None = setting(
        "Row and column of the pixel whose kernel is kept",
        default=None,
        at_least=0,
        null="the steepest edge",
        resume="free",
        report="ignored",
    )
