"""TensorBoard sink: scalars, histograms and images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from typing_extensions import override

from train.observe.sink import Histogram, Sink

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class TensorBoard(Sink):
    """Writes TensorBoard event files; a full disk stops the writing, not the run.

    Args:
        folder: Folder for the event files.
        first_step: The first step of this start; TensorBoard hides older data from this step on.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed on one rank only

        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=first_step)

    @override
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(lambda writer, name=name, value=value: writer.add_scalar(name, value, step))

    @override
    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        edges, counts = histogram
        middles = edges[:-1] + 0.5
        self._write(
            lambda writer: writer.add_histogram_raw(
                name,
                min=float(edges[0]),
                max=float(edges[-1]),
                num=int(counts.sum()),
                sum=float((counts * middles).sum()),
                sum_squares=float((counts * middles.square()).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )
        )

    @override
    def image(self, step: int, name: str, pixels: Tensor) -> None:
        self._write(lambda writer: writer.add_image(name, pixels, step))

    @override
    def flush(self) -> None:
        self._write(lambda writer: writer.flush())

    @override
    def close(self) -> None:
        self._write(lambda writer: writer.close())

    def _write(self, write: Callable[[SummaryWriter], object]) -> None:
        if self._writer is None:
            return
        try:
            write(self._writer)
        except OSError as error:
            logger.error(
                "TensorBoard logging stopped (%s); all metrics are in the .jsonl files", error.strerror or error
            )
            self._writer = None
