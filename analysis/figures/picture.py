"""One picture as a figure of a column's width: colours by value, holes as holes, a colour bar below.

Shapes: H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from analysis.style import WIDTH, paper

HOLE = "#c4c4c4"  # not a colour of the scales
_TALLEST = 4.2  # inches
_MARGIN, _TITLE, _BAR = 0.06, 0.36, 0.4  # inches beside, above and below a picture
_SHARP = 700  # pixels in a row that print at a column's width can just show


@paper
def picture(
    values: np.ndarray,
    *,
    title: str,
    scale: Normalize | None = None,
    colours: str = "viridis",
    bar: str = "",
    open_end: bool = False,
) -> Figure:
    """Draw one picture; what is not finite is a hole.

    Args:
        values: (H, W) to be coloured, or (H, W, 3) colours, uint8 or 0 to 1.
        title: Above it.
        scale: Of the colours; None for a picture in colour, which has no bar.
        colours: Name of the colour map.
        bar: Words below the colour bar.
        open_end: Whether values beyond the scale's end are to be expected.
    """
    axes = picture_axes(values.shape[0] / values.shape[1], title=title, with_bar=scale is not None)
    show(axes, values, scale=scale, colours=colours)
    if scale is not None:
        colour_bar(axes, scale, colours=colours, words=bar, open_end=open_end)
    return figure_of(axes)


def picture_axes(aspect: float, *, title: str, with_bar: bool) -> Axes:
    """Return axes for a picture in a figure of their own.

    Args:
        aspect: Height over width.
        title: Above the picture, at most two lines.
        with_bar: Whether there is room for a colour bar below.
    """
    width = WIDTH - 2 * _MARGIN
    height = min(width * aspect, _TALLEST)
    below = _BAR if with_bar else _MARGIN
    whole = _TITLE + height + below
    axes = Figure(figsize=(WIDTH, whole)).add_axes((_MARGIN / WIDTH, below / whole, width / WIDTH, height / whole))
    axes.set_title(title, loc="left", fontsize=7.5, pad=3)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def show(axes: Axes, values: np.ndarray, *, scale: Normalize | None, colours: str = "viridis") -> None:
    """Put a picture on axes, whose coordinates become column and row.

    Args:
        axes: Where.
        values: As for `picture`.
        scale: Of the colours; None for a picture in colour.
        colours: Name of the colour map.
    """
    axes.imshow(
        values if values.ndim == 2 else _coloured(values),
        norm=scale,
        cmap=colormaps[colours].with_extremes(bad=HOLE) if values.ndim == 2 else None,
        # A small picture keeps its pixels, in the file too; of a large one is kept what print can show.
        interpolation="none" if values.shape[1] <= _SHARP else "auto",
    )


def colour_bar(axes: Axes, scale: Normalize, *, colours: str, words: str, open_end: bool = False) -> None:
    """Draw a thin colour bar below the axes of a picture, with its words.

    Args:
        axes: Of the picture.
        scale: From one end to the other.
        colours: Name of the colour map.
        words: Below the bar.
        open_end: Whether values beyond the scale's end are to be expected.
    """
    figure = figure_of(axes)
    low, high = float(scale.vmin or 0), float(scale.vmax or 0)
    whole = figure.get_size_inches()[1]
    bar = figure.add_axes((0.2, (_BAR - 0.1) / whole, 0.6, 0.07 / whole), label="bar")
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=colormaps[colours], aspect="auto", extent=(low, high, 0, 1))
    bar.grid(visible=False)
    bar.set_yticks([])
    bar.spines[:].set_visible(False)
    texts = [f"{tick:.3g}" for tick in np.linspace(low, high, 3)]
    bar.set_xticks(np.linspace(low, high, 3), [*texts[:2], f"> {texts[2]}" if open_end else texts[2]], fontsize=6.5)
    bar.tick_params(length=2, pad=1.5)
    bar.set_xlabel(words, fontsize=7, labelpad=1)


def range_of(arrays: Iterable[np.ndarray], *, low: float | None = None, quantile: float = 1.0) -> Normalize:
    """Return the scale from the least to the greatest finite value, never empty.

    Args:
        arrays: Of any shape.
        low: Where it begins, in place of the least value.
        quantile: Share of the values below its end.
    """
    values = np.concatenate([np.ravel(array).astype(float) for array in arrays])
    values = values[np.isfinite(values)]
    if not len(values):
        return Normalize(0, 1)
    bottom = float(values.min()) if low is None else low
    top = float(np.quantile(values, quantile))
    return Normalize(bottom, top if top > bottom else bottom + 1.0)


def figure_of(axes: Axes) -> Figure:
    """Return the figure that axes lie in."""
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _coloured(values: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) colours that can be shown: cut to 0..1, holes in their own colour."""
    if values.dtype == np.uint8:
        return values
    known = np.isfinite(values).all(axis=2, keepdims=True)
    return np.where(known, np.clip(values, 0, 1), to_rgb(HOLE))
