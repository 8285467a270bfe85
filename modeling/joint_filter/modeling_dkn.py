"""Joint image filters with a separate kernel for each pixel: DKN and FDKN.

Shapes: B batch, C channels, H height, W width, K kernel size.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME, logging
from transformers.utils.generic import ModelOutput

from .configuration_dkn import DKNConfig
from .image_processing_dkn import DKNImageProcessor
from .kernels_dkn import CELL, KernelNetwork
from .sampling_dkn import place_taps, sample_and_sum

logger = logging.get_logger(__name__)


@dataclass
class DKNOutput(ModelOutput):
    """Output of a forward pass."""

    output: Tensor | None = None  # (B, C, H, W), the filtered target
    weights: Tensor | None = None  # (B, K * K, H, W), sum 0 (residual) or 1; tap (i, j) is channel K i + j, i along x
    offsets: Tensor | None = None  # (B, 2 * K * K, H, W) in pixels; channel 2 (K i + j) is x, the next is y


class DKNModel(PreTrainedModel):
    """Weighted average of a few samples around each pixel, with weights and positions predicted from both images.

    Kim, Ponce and Ham, Deformable kernel networks for joint image filtering, IJCV 2021.
    """

    config: DKNConfig
    config_class = DKNConfig
    main_input_name = "target"
    _auto_class = "AutoModel"
    _no_split_modules = ["KernelNetwork"]  # noqa: RUF012
    _can_compile_fullgraph = True

    def __init__(self, config: DKNConfig) -> None:
        super().__init__(config)
        self.kernels = KernelNetwork(config)
        self.taps = place_taps(config.kernel_size, config.window_size, config.sampling)
        name = config.name_or_path or ""
        self._home = os.path.abspath(name) if os.path.isdir(name) else name  # the working folder may change
        self._processor: DKNImageProcessor | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Draw convolutions as torch does, where transformers would take a normal distribution without biases."""
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def forward(self, guidance: Tensor | None, target: Tensor) -> DKNOutput:
        """Filter a target by a guidance of the same size, which may be any.

        Args:
            guidance: (B, C, H, W) in [0, 1], red, green and blue. Not looked at where the configuration says so.
            target: (B, C, H, W), in [0, 1] as in training; a low-resolution one comes up-sampled.

        Returns:
            The filtered target and its kernels. They sum to 1 (the paper's eq. 1 and 2), or in the residual form to 0,
            and what they average is added to the target.

        Raises:
            ValueError: Shapes that do not fit together or the configuration.
        """
        self._check_shapes(guidance, target)
        raw, offsets = self.kernels(guidance, target)
        if self.config.residual:
            weights = raw - raw.mean(dim=1, keepdim=True)
        else:
            weights = raw / raw.sum(dim=1, keepdim=True).clamp(min=torch.finfo(raw.dtype).tiny)
        filtered = sample_and_sum(target, weights, offsets, self.taps)
        return DKNOutput(target + filtered if self.config.residual else filtered, weights, offsets)  # type: ignore[arg-type]

    def _check_shapes(self, guidance: Tensor | None, target: Tensor) -> None:
        wanted: dict[str, tuple[Tensor | None, int]] = {"target": (target, self.config.target_channels)}
        if self.config.guidance:
            wanted["guidance"] = (guidance, self.config.guidance_channels)
        for name, (image, channels) in wanted.items():
            if image is None or image.ndim != 4 or image.shape[1] != channels or not image.numel():
                shape = None if image is None else tuple(image.shape)
                raise ValueError(f"{name}: {shape} given; this model takes (batch, {channels}, height, width)")
            if (image.shape[0], *image.shape[2:]) != (target.shape[0], *target.shape[2:]):
                raise ValueError(
                    f"guidance: {tuple(image.shape)} does not match target {tuple(target.shape)} in batch, height or "
                    f"width; up-sample the target to the guidance's size first, as DKNImageProcessor does"
                )

    @torch.no_grad()
    def filter(
        self, guidance: Any, target: Any, *, iterations: int = 1, processor: DKNImageProcessor | None = None
    ) -> Any:
        """Filter an image: two images in, one out, of the guidance's size and the target's own type and units.

        Args:
            guidance: What DKNImageProcessor takes: a PIL image, an array, a tensor, or a path or URL.
            target: Likewise; smaller than the guidance it is up-sampled first. Of several channels each is filtered
                alone where the model takes one. May be the guidance itself. It is brought to [0, 1] by its own least
                and greatest value, of all channels together; the processor's `invalid` tells which pixels are holes:
                they do not count for that, are filled with the nearest value, and come back as they were. Black is
                none in an image with three channels; in a gray one it is, unless `invalid` is `none`.
            iterations: How often the filter is applied to its own output.
            processor: How images become tensors; None: as preprocessor_config.json beside the model says, and where
                there is none, as DKNImageProcessor does by default.

        Raises:
            ValueError: Images that do not go together, or `iterations` below 1.
        """
        if iterations < 1:
            raise ValueError(f"iterations: {iterations} given; write 1 or more")
        processor = processor or self._own_processor()
        guidance, target = processor.load(guidance), processor.load(target)
        inputs = processor(guidance, target)
        guide, filtered = (inputs[name].to(self.device, self.dtype) for name in ("guidance", "target"))
        channels = filtered.shape[1]
        if self.config.target_channels == 1:
            filtered = filtered.transpose(0, 1)  # (C, 1, H, W)
            guide = guide.expand(channels, -1, -1, -1)
        was_training = self.training
        self.eval()
        for done in range(iterations):
            seen = processor.fill_holes(filtered, target) if done else filtered
            filtered = self(guide, seen).output
        self.train(was_training)
        return processor.post_process(filtered.reshape(1, channels, *filtered.shape[-2:]), target)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a folder that stands on its own: AutoModel and AutoImageProcessor load it without this project."""
        super().save_pretrained(save_directory, **kwargs)
        self._own_processor().save_pretrained(save_directory)

    def _own_processor(self) -> DKNImageProcessor:
        """Return the processor that was saved with this model, read when it is first asked for."""
        if self._processor is None:
            self._processor = _processor_of(self._home)
        return self._processor

    def sample_places(self, offsets: Tensor, row: int, column: int) -> Tensor:
        """Return row and column of each sample that a pixel's kernel reads, (K * K, 2), from offsets of one image."""
        steps = self.taps.origins(offsets)[..., 0, 0] + self.taps.scale * offsets[0, :, row, column].view(-1, 2)
        return steps.flip(1) + steps.new_tensor([row, column])

    def flops_per_pixel(self) -> float:
        """Count the operations of a forward pass per pixel: of the convolutions, a multiplication and addition as 2."""
        products = sum(
            module.in_channels * module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            for module in self.modules()
            if isinstance(module, nn.Conv2d)
        )
        return 2.0 * products / (CELL**2 if self.config.architecture == "fdkn" else 1)


def _processor_of(home: str) -> DKNImageProcessor:
    """Return the processor of a folder or of a name on the hub; the default of nothing, or where there is none."""
    if not home or (os.path.isdir(home) and not os.path.isfile(os.path.join(home, IMAGE_PROCESSOR_NAME))):
        return DKNImageProcessor()
    try:
        return DKNImageProcessor.from_pretrained(home)
    except OSError as error:
        if os.path.isdir(home):
            raise  # it is there, and damaged
        logger.warning("%s: cannot get %s, using the default image processor (%s)", home, IMAGE_PROCESSOR_NAME, error)
        return DKNImageProcessor()
