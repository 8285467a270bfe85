"""Plots of the kernels of chosen pixels: sample positions and weights of a joint filter.

Shapes: P chosen pixels, K samples of a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.figures.pictures.filtered import ImageOfRuns, slug
from analysis.figures.pictures.picture import color_bar, figure_of, picture_axes, range_of, show
from analysis.images.filtered import FilteredImage
from analysis.runs import Record, setting
from analysis.style import Panel, Plate, Series, keep, new_axes, paper

_MOST_PIXELS = 3
_MOST_NUMBERS = 25  # samples up to which each is numbered
_MARGIN = 1.5  # pixels around the window
_WINDOW = 15  # side of the square that samples are read from, if the configuration has none
_COLOURS = "RdBu_r"


@paper
def kernels(image: ImageOfRuns[FilteredImage], index: int, records: Sequence[Record]) -> Plate:
    """Draw every run's kernels at an image's chosen pixels: on the guidance, on the input, and as bars.

    Args:
        image: The image, as filtered by several runs.
        index: Index of the image on the page, for the file names.
        records: The runs, for their window sizes and tap positions.
    """
    of_run = {record.label: record for record in records}
    count = min(_MOST_PIXELS, max((len(one.pixel) for one in image.by_run.values()), default=0))
    panels = []
    for pixel in range(count):
        with_pixel = {label: one for label, one in image.by_run.items() if pixel < len(one.pixel)}
        scale = symmetric_scale([one.weights[pixel] for one in with_pixel.values()])
        for i, (label, one) in enumerate(with_pixel.items()):
            words = image.title(f"pixel {pixel + 1} at row {one.pixel[pixel][0]}, column {one.pixel[pixel][1]}", label)
            name = f"{pixel + 1}" if len(image.by_run) == 1 else f"{pixel + 1}-{i + 1}"
            alt = f"Kernel of {words} in {image.name}".replace("\n", ": ")
            for of in ("guidance", "input"):
                figure = _zoom(one, pixel, of, of_run[label], scale=scale, title=f"{words}, on the {of}")
                panels.append(Panel(f"{name}-{of}", f"{alt}, on the {of}", figure))
            panels.append(Panel(f"{name}-weights", f"{alt}: weights", _bars(one.weights[pixel], scale, words)))
    return Plate(
        name=f"kernel-{index + 1}-{slug(image.name)}",
        title=f"Kernels in {image.name}",
        caption="Circles: sample positions of the chosen pixel (the square in the center), numbered in the network's "
        "order and colored by weight on a symmetric scale, with white for zero. Crosses: the regular taps, where the "
        "samples would be without offsets. Dashed: the window; samples outside it or outside the image read as zero. "
        "In the residual form, the weights sum to 0 and the weighted sum of samples is added to the input; otherwise "
        "they sum to 1. The input's contrast is stretched to the visible region.",
        panels=panels,
        missing=[] if panels else [f"{image.name}: no pixels were chosen"],
    )


def symmetric_scale(weights: Sequence[np.ndarray]) -> Normalize:
    """Return a scale centered at zero that covers all finite weights."""
    most = range_of([np.abs(values) for values in weights], low=0.0).vmax
    return Normalize(-float(most or 1), float(most or 1))


def regular_taps(count: int, *, window: int, sampling: str) -> np.ndarray:
    """Return the sample positions of a k x k kernel without offsets, as rows and columns from its pixel: (K, 2).

    Args:
        count: Number of samples, K; the result is empty unless it is a square.
        window: Side of the square that samples are read from.
        sampling: "centered": the pixel and its neighbors; "compat": the positions that the authors' weights expect,
            (window // 2 + tap) (window - 1) / window in the window's own coordinates.
    """
    side = math.isqrt(count)
    if side * side != count:
        return np.empty((0, 2))
    taps = np.arange(side) - side // 2.0
    if sampling == "compat":
        taps = (window // 2 + np.arange(side)) * (window - 1) / window - window // 2
    return np.stack(np.meshgrid(taps, taps, indexing="ij"), axis=-1).reshape(-1, 2)


def _zoom(one: FilteredImage, pixel: int, of: str, record: Record, *, scale: Normalize, title: str) -> Figure:
    """Draw the surroundings of a pixel with its samples."""
    window = _window(record)
    row, column = (int(value) for value in one.pixel[pixel])
    half = window / 2 + _MARGIN
    axes = picture_axes(1.0, title=title, with_bar=True)
    if of == "guidance":
        show(axes, one.guidance, scale=None)
    else:
        _show_input(axes, one, (row, column), half)
    axes.set_xlim(column - half, column + half)
    axes.set_ylim(row + half, row - half)
    axes.set_facecolor("#8a8a8a")  # outside the image
    edge = {"fill": False, "linewidth": 1.0}
    axes.add_patch(Rectangle((column - window / 2, row - window / 2), window, window, linestyle="--",
                             edgecolor="#e8e8e8", gid="window", **edge))  # fmt: skip
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, edgecolor="black", gid="pixel", **edge))
    taps = regular_taps(
        one.weights.shape[1], window=window, sampling=str(setting(record.config, "task.model.sampling"))
    )
    axes.plot(
        column + taps[:, 1], row + taps[:, 0], "+", color="#d9d9d9", markersize=5, markeredgewidth=0.7, gid="taps"
    )
    _draw_samples(axes, one.positions[pixel], one.weights[pixel], scale)
    color_bar(axes, scale, colors=_COLOURS, words="weight")
    return figure_of(axes)


def _show_input(axes: Axes, one: FilteredImage, at: tuple[int, int], half: float) -> None:
    """Draw the input, its contrast stretched to the visible region: a filter works on small differences."""
    if one.input.shape[2] == 3:
        show(axes, one.input, scale=None)
        return
    rows, columns = (slice(max(0, math.floor(center - half)), math.ceil(center + half) + 1) for center in at)
    seen = one.input[rows, columns, 0]
    show(axes, one.input[:, :, 0], scale=range_of([seen]), colors="gray")


def _draw_samples(axes: Axes, positions: np.ndarray, weights: np.ndarray, scale: Normalize) -> None:
    finite = np.isfinite(positions).all(axis=1) & np.isfinite(weights)
    numbered = len(weights) <= _MOST_NUMBERS
    colors = colormaps[_COLOURS](scale(np.where(finite, weights, 0.0)))
    axes.scatter(
        positions[finite, 1], positions[finite, 0], s=72 if numbered else 16, c=colors[finite], edgecolors="black",
        linewidths=0.7, zorder=3, gid="samples",
    )  # fmt: skip
    for i in np.flatnonzero(finite) if numbered else ():
        axes.annotate(str(i + 1), (positions[i, 1], positions[i, 0]), ha="center", va="center", fontsize=5.5,
                      color=_ink(colors[i]), zorder=4, annotation_clip=True)  # fmt: skip


def _bars(weights: np.ndarray, scale: Normalize, title: str) -> Figure:
    """Draw the weights as bars in the order of the samples, with their values if there is room."""
    axes = new_axes(x="weight", y="sample")
    figure = figure_of(axes)
    figure.set_size_inches(figure.get_size_inches()[0], 4.1)
    axes.set_title(f"{title}: sum {round(float(weights.sum()), 3) + 0.0:.3f}", loc="left", fontsize=7.5, pad=3)
    finite = np.where(np.isfinite(weights), weights, 0.0)
    order = np.arange(1, len(weights) + 1)
    axes.barh(order, finite, color=colormaps[_COLOURS](scale(finite)), edgecolor="#555555", linewidth=0.5, height=0.75)
    zero = axes.axvline(0, color="black", linewidth=0.6, gid="zero")
    keep(axes, zero, Series("", "weight by sample", order.astype(float), weights))
    axes.set_ylim(len(weights) + 0.6, 0.4)
    axes.set_xlim(1.35 * float(scale.vmin or -1), 1.35 * float(scale.vmax or 1))
    if len(weights) <= _MOST_NUMBERS:
        axes.set_yticks(order)
        for at, weight, bar in zip(order, weights, finite, strict=True):
            axes.annotate(f"{weight:.3f}", (bar, at), xytext=(3 if bar >= 0 else -3, 0), textcoords="offset points",
                          ha="left" if bar >= 0 else "right", va="center", fontsize=6.5)  # fmt: skip
    return figure


def _window(record: Record) -> int:
    window = setting(record.config, "task.model.window_size")
    return window if isinstance(window, int) else _WINDOW


def _ink(color: np.ndarray) -> str:
    """Return black or white, whichever is more legible on a color."""
    red, green, blue = (float(share) for share in color[:3])
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
