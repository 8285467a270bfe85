"""Column-wide plots of one image: colored by value, with holes in gray and a color bar below.

Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from analysis.style import WIDTH, paper, plain

HOLE = "#c4c4c4"  # a color that no color map contains
_TALLEST = 4.2  # inches
_MARGIN, _TITLE, _BAR = 0.06, 0.36, 0.4  # inches beside, above and below a picture
_SHARP = 700  # widest image, in pixels, whose single pixels are still visible in print at column width


@paper
def picture(
    values: np.ndarray,
    *,
    title: str,
    scale: Normalize | None = None,
    colors: str = "viridis",
    bar: str = "",
    open_end: bool = False,
    width: float = WIDTH,
) -> Figure:
    """Draw one image; non-finite values are holes.

    Args:
        values: (H, W) values to color, or (H, W, 3) colors as uint8 or from 0 to 1.
        title: Title of the plot.
        scale: Color scale; None for a color image, which has no color bar.
        colors: Name of the color map.
        bar: Label of the color bar.
        open_end: Whether values may exceed the upper end of the scale.
        width: Width of the figure in inches.
    """
    axes = picture_axes(values.shape[0] / values.shape[1], title=title, with_bar=scale is not None, width=width)
    show(axes, values, scale=scale, colors=colors)
    if scale is not None:
        color_bar(axes, scale, colors=colors, words=bar, open_end=open_end)
    return figure_of(axes)


def picture_axes(aspect: float, *, title: str, with_bar: bool, width: float = WIDTH) -> Axes:
    """Return axes for an image in a new figure.

    Args:
        aspect: Height over width.
        title: Title of the plot, at most two lines.
        with_bar: Whether to leave room for a color bar below.
        width: Width of the figure in inches.
    """
    inner = width - 2 * _MARGIN
    height = min(inner * aspect, _TALLEST * width / WIDTH)
    below = _BAR if with_bar else _MARGIN
    whole = _TITLE + height + below
    axes = Figure(figsize=(width, whole)).add_axes((_MARGIN / width, below / whole, inner / width, height / whole))
    axes.set_anchor("NW")  # a tall image is below the start of its title, not in the middle
    axes.set_title(plain(title), loc="left", fontsize=7.5, pad=3)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def show(axes: Axes, values: np.ndarray, *, scale: Normalize | None, colors: str = "viridis") -> None:
    """Draw an image on axes, whose coordinates become column and row.

    Args:
        axes: Axes to draw on.
        values: As in `picture`.
        scale: Color scale; None for a color image.
        colors: Name of the color map.
    """
    axes.imshow(
        values if values.ndim == 2 else _colored(values),
        norm=scale,
        cmap=colormaps[colors].with_extremes(bad=HOLE) if values.ndim == 2 else None,
        # A small image keeps all its pixels, in the file too; a large one is resampled to print resolution.
        interpolation="none" if values.shape[1] <= _SHARP else "auto",
    )


def show_colors(axes: Axes, values: np.ndarray) -> None:
    """Draw colors (H, W, 3) whose neighbors do not blend, since between the colors of two classes lies a third's."""
    axes.imshow(values, interpolation="none" if values.shape[1] <= _SHARP else "nearest")


def color_bar(axes: Axes, scale: Normalize, *, colors: str, words: str, open_end: bool = False) -> None:
    """Draw a thin, labeled color bar below the axes of an image.

    Args:
        axes: Axes of the image.
        scale: Color scale.
        colors: Name of the color map.
        words: Label of the bar.
        open_end: Whether values may exceed the upper end of the scale.
    """
    figure = figure_of(axes)
    low, high = float(scale.vmin or 0), float(scale.vmax or 0)
    whole = figure.get_size_inches()[1]
    bar = figure.add_axes((0.2, (_BAR - 0.1) / whole, 0.6, 0.07 / whole), label="bar")
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=colormaps[colors], aspect="auto", extent=(low, high, 0, 1))
    bar.grid(visible=False)
    bar.set_yticks([])
    bar.spines[:].set_visible(False)
    texts = [f"{tick:.3g}" for tick in np.linspace(low, high, 3)]
    bar.set_xticks(np.linspace(low, high, 3), [*texts[:2], f"> {texts[2]}" if open_end else texts[2]], fontsize=6.5)
    bar.tick_params(length=2, pad=1.5)
    bar.set_xlabel(words, fontsize=7, labelpad=1)


def range_of(arrays: Iterable[np.ndarray], *, low: float | None = None, quantile: float = 1.0) -> Normalize:
    """Return the scale from the smallest to the largest finite value; its range is never empty.

    Args:
        arrays: Values, of any shape.
        low: Lower end; None: the smallest value.
        quantile: Quantile of the values at the upper end.
    """
    values = np.concatenate([np.ravel(array).astype(float) for array in arrays])
    values = values[np.isfinite(values)]
    if not len(values):
        return Normalize(0, 1)
    bottom = float(values.min()) if low is None else low
    top = float(np.quantile(values, quantile))
    return Normalize(bottom, top if top > bottom else bottom + 1.0)


def figure_of(axes: Axes) -> Figure:
    """Return the figure of axes."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _colored(values: np.ndarray) -> np.ndarray:
    """Return displayable (H, W, 3) colors: clipped to 0..1, with holes in their own color."""
    if values.dtype == np.uint8:
        return values
    finite = np.isfinite(values).all(axis=2, keepdims=True)
    return np.where(finite, np.clip(values, 0, 1), to_rgb(HOLE))
