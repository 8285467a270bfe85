"""Settings of an import of the DKN authors' weights: `python -m train.export FILE OUT key=value ...`."""

from __future__ import annotations

from train.config.setting import section, setting
from train.config.tasks.joint_filter import Downsampling, FilterConfig


@section
class AuthorsWeightsConfig:
    """What a file of the DKN authors' weights does not tell: its tensors tell architecture and kernel size."""

    scale: int = setting(
        "Factor by which the depth was downsampled that the weights were trained on; 8 for FDKN_8x",
        at_least=2,
        at_most=1024,
    )
    downsampling: Downsampling = setting(
        "Downsampling method; the authors' models named NN were trained on nearest_right_bottom", default="bicubic"
    )
    residual: bool = setting("Whether the filtered image is added to the target; false: kernels sum to 1", default=True)
    window_size: int = setting(
        "Side of the square around each pixel from which samples are read; odd",
        default=FilterConfig.window_size,
        at_least=3,
        unit="pixels",
        at_most=1001,
    )
