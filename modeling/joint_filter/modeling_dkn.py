"""Joint image filters with a separate kernel for each pixel: DKN and FDKN.

Shapes: B batch, C channels, H height, W width, K kernel size.
"""

from __future__ import annotations

import os
import warnings
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME, logging
from transformers.utils.generic import ModelOutput

from .configuration_dkn import DKNConfig
from .facts_dkn import CELL
from .image_processing_dkn import DKNImageProcessor
from .kernels_dkn import KernelNetwork
from .purpose_dkn import FilterPurpose, HoleRule
from .sampling_dkn import place_taps, sample_and_sum
from .tiles_dkn import TILE, filter_in_tiles, halo_of

logger = logging.get_logger(__name__)


class _Call(NamedTuple):
    """How a call of `DKNModel.filter` treats each of its pairs; see there."""

    processor: DKNImageProcessor
    iterations: int
    scale: float | None
    clip: bool
    tile: int


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
        self._has_warned = False
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
        self,
        guidance: Any,
        target: Any,
        *,
        iterations: int = 1,
        processor: DKNImageProcessor | None = None,
        invalid: HoleRule | None = None,
        scale: float | None = None,
        clip: bool = True,
        tile: int = TILE,
    ) -> Any:
        """Filter an image: two images in, one out, of the guidance's size and the target's own type and units.

        Args:
            guidance: What DKNImageProcessor takes: a PIL image, an array, a tensor, or a path or URL. A list of them,
                of any sizes, with a list of targets; or a batch with four dimensions, with a batch of targets.
            target: Likewise; smaller than the guidance it is up-sampled first. Of several channels each is filtered
                alone where the model takes one. May be the guidance itself. It is brought to [0, 1] by its own least
                and greatest value, of all channels together; `invalid` tells which pixels are holes: they do not count
                for that, are filled with the nearest value, and come back as they were.
            iterations: How often the filter is applied to its own output.
            processor: How images become tensors; None: as preprocessor_config.json beside the model says, and where
                there is none, as DKNImageProcessor does by default.
            invalid: Which pixels are holes: `zero`, `none` or a number; see DKNImageProcessor. None: as the processor
                says.
            scale: How many times coarser than the guidance the target is; None: the sizes tell. State it for a target
                that was enlarged before.
            clip: Whether the result stays between the least and the greatest value of the target.
            tile: Side in pixels, a multiple of 4, of the tiles in which larger images are computed; bounds the memory
                and changes results by rounding only.

        Returns:
            An image of the target's kind; of lists and batches, a list.

        Warns:
            UserWarning: The purpose of the filter is unknown, once; or as DKNImageProcessor.preprocess.

        Raises:
            ValueError: Images that do not go together or do not fit the purpose of the filter, or invalid arguments.
        """
        _check_count("iterations", iterations)
        _check_count("tile", tile, multiple=CELL)
        call = _Call(self._processor_for(processor, invalid), iterations, scale, clip, tile)
        self._warn_of_unknown_purpose()
        pairs = _pairs(guidance, target)
        if pairs is None:
            return self._filter_one(guidance, target, call)
        results = []
        for number, pair in enumerate(pairs, start=1):
            try:
                results.append(self._filter_one(*pair, call))
            except ValueError as error:
                raise ValueError(f"pair {number} of {len(pairs)}: {error}") from error
        return results

    def _filter_one(self, guidance: Any, target: Any, call: _Call) -> Any:
        processor = call.processor
        guidance, target = processor.load(guidance), processor.load(target)
        inputs = processor(guidance, target, scale=call.scale)
        guide, filtered = (inputs[name].to(self.device, self.dtype) for name in ("guidance", "target"))
        was_training = self.training
        self.eval()
        try:
            for done in range(call.iterations):
                seen = processor.fill_holes(filtered, target) if done else filtered
                filtered = self._filter_tensors(guide, seen, call.tile)
        finally:
            self.train(was_training)
        return processor.post_process(filtered, target, clip=call.clip)

    def _filter_tensors(self, guidance: Tensor, target: Tensor, tile: int) -> Tensor:
        """Filter a target (1, C, H, W); where the model takes one channel, each by itself."""
        channels = target.split(1, dim=1) if self.config.target_channels == 1 else [target]
        halo = halo_of(self.config)
        outputs = [filter_in_tiles(self._output, guidance, each, tile=tile, halo=halo) for each in channels]
        return torch.cat(outputs, dim=1)

    def _output(self, guidance: Tensor, target: Tensor) -> Tensor:
        return self(guidance, target).output

    def _processor_for(self, processor: DKNImageProcessor | None, invalid: HoleRule | None) -> DKNImageProcessor:
        """Return the processor of a call, which knows the scale of this filter whoever made it."""
        if processor is not None and invalid is not None:
            raise ValueError("invalid: a processor is given, too, and has its own; write one of both")
        wanted = copy(processor or self._own_processor())
        purpose = self.config.trained_for()
        if wanted.scale is None and purpose is not None:
            wanted.scale = purpose.scale
        return wanted if invalid is None else DKNImageProcessor(invalid=invalid, scale=wanted.scale)

    def _warn_of_unknown_purpose(self) -> None:
        """Warn once if this filter comes from a folder that does not say what it was trained for."""
        if self.config.purpose is None and self._home and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self._home}: config.json has no `purpose`, so nothing checks that targets have the scale that this "
                f"filter was trained for; check it yourself, or export the run again",
                stacklevel=4,
            )

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a folder that stands on its own: AutoModel and AutoImageProcessor load it without this project."""
        super().save_pretrained(save_directory, **kwargs)
        self._own_processor().save_pretrained(save_directory)

    def _own_processor(self) -> DKNImageProcessor:
        """Return the processor that was saved with this model, read when it is first asked for."""
        if self._processor is None:
            self._processor = _processor_of(self._home, self.config.trained_for())
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


def _processor_of(home: str, purpose: FilterPurpose | None) -> DKNImageProcessor:
    """Return the processor of a folder or of a name on the hub; where there is none, that of the purpose."""
    default = DKNImageProcessor()
    if purpose is not None:
        default = DKNImageProcessor(invalid=purpose.invalid, scale=purpose.scale)
    if not home or (os.path.isdir(home) and not os.path.isfile(os.path.join(home, IMAGE_PROCESSOR_NAME))):
        return default
    try:
        return DKNImageProcessor.from_pretrained(home)
    except OSError as error:
        if os.path.isdir(home):
            raise  # it is there, and damaged
        logger.warning("%s: cannot get %s, using the default image processor (%s)", home, IMAGE_PROCESSOR_NAME, error)
        return default


def _check_count(name: str, count: Any, *, multiple: int = 1) -> None:
    is_whole = isinstance(count, int) and not isinstance(count, bool)
    if not is_whole or count < multiple or count % multiple:
        wanted = "1 or more" if multiple == 1 else f"a multiple of {multiple}"
        raise ValueError(f"{name}: {count!r} given; write {wanted}, a whole number")


def _pairs(guidance: Any, target: Any) -> list[tuple[Any, Any]] | None:
    """Return the pairs of lists or batches; None for single images.

    Raises:
        ValueError: Only one is a list or batch, or they have different lengths.
    """
    dimensions = [getattr(images, "ndim", 0) for images in (guidance, target)]
    several = [
        isinstance(images, list | tuple) or count == 4
        for images, count in zip((guidance, target), dimensions, strict=True)
    ]
    if not any(several):
        return None
    if not all(several) and dimensions != [4, 3]:  # a batch of guidances makes (B, h, w) a batch of targets
        single = "target" if several[0] else "guidance"
        raise ValueError(f"{single}: one image beside several; write one for each")
    if len(guidance) != len(target):
        raise ValueError(f"guidance: {len(guidance)} images for {len(target)} targets; write one for each")
    return list(zip(guidance, target, strict=True))
