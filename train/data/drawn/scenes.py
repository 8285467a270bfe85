"""Procedural rooms: a color image with exact depth or a near-infrared image, a pure function of an index and a size.

A room has slanted walls and a floor, spheres, boxes, rods and a wire. Painted checks, stripes, spots and noise create
color edges where the depth has none, and some objects are painted like the wall behind them, so that some depth edges
are barely visible in color. From this a filter learns when to trust its guidance. In near infrared, lit from elsewhere,
surfaces have other shades: many paints vanish, some objects look like the wall, and others that color hides stand out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from train.data.drawn import patterns
from train.data.drawn.draws import Draws
from train.data.drawn.surfaces import Hit, box, camera_rays, plane, rod, sphere

VERSION = 1  # of the images; increment it if they change, as that would silently change training and results

_STREAM = 0x5CE7E
_HIDDEN = 0.25  # of the objects are painted like the wall
_AMBIENT = 0.55
_SENSOR_NOISE = 0.008  # standard deviation, relative to 1
_KINDS = ("plain", "gradient", "stripes", "checks", "spots", "noise", "weave")

_INFRARED = 0x1F4A  # random stream, separate from that of color and depth
_VANISHING = 0.45  # of the paints have no pattern in near infrared
_LIKE_THE_WALL = 0.2  # of the objects, in near infrared


def scene(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return one room.

    Args:
        index: Number of the room, from 0.
        size: Height and width; each size shows the same room.

    Returns:
        RGB float32 (H, W, 3) from 0 to 1, and depth float32 (H, W) in meters.
    """
    color, depth = np.zeros((*size, 3)), np.full(size, np.inf)
    for _, nearer, hit, paint, light in _surfaces(index, size, depth):
        normal, coordinates = hit.details(nearer)
        color[nearer] = paint.at(coordinates) * _shade(normal, light)
    return _photo(color, index, size), depth.astype(np.float32)


def modalities(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return one room in color and in near infrared.

    Args:
        index: Number of the room, from 0: that of `scene`.
        size: Height and width.

    Returns:
        RGB float32 (H, W, 3) and near infrared float32 (H, W), both from 0 to 1; the latter is free of noise.
    """
    color, infrared, depth = np.zeros((*size, 3)), np.zeros(size), np.full(size, np.inf)
    draws = Draws(_INFRARED, index)
    lamp = np.array([draws.uniform(-0.2, 0.2), draws.uniform(-0.2, 0.2), -1])
    lamp /= np.linalg.norm(lamp)
    shades: dict[int, np.ndarray] = {}  # by surface: without and with the whole of its pattern
    for number, nearer, hit, paint, light in _surfaces(index, size, depth):
        if number not in shades:
            is_like_wall = number > _WALLS and draws.uniform(0, 1) < _LIKE_THE_WALL
            shades[number] = shades[0] if is_like_wall else _infrared_shades(draws)
        normal, coordinates = hit.details(nearer)
        color[nearer] = paint.at(coordinates) * _shade(normal, light)
        dark, contrast = shades[number]
        share = paint.pattern(coordinates[:, 0], coordinates[:, 1])
        infrared[nearer] = (dark + contrast * share) * _shade(normal, lamp)[:, 0]
    return _photo(color, index, size), np.clip(infrared, 0, 1).astype(np.float32)


def _infrared_shades(draws: Draws) -> np.ndarray:
    """Return the shade of a surface in near infrared, and how much its pattern adds to it."""
    shade = draws.uniform(0.15, 0.9)
    contrast = 0.0 if draws.uniform(0, 1) < _VANISHING else draws.uniform(-0.3, 0.3)
    return np.array([shade, contrast])


def _surfaces(
    index: int, size: tuple[int, int], depth: np.ndarray
) -> Iterator[tuple[int, np.ndarray, Hit, _Paint, np.ndarray]]:
    """Yield surfaces in the order they are drawn: object, pixels, hit, paint, light; puts their depth into `depth`."""
    draws = Draws(_STREAM, index)
    rays = camera_rays(size)
    light = np.array([draws.uniform(-0.7, 0.7), draws.uniform(-1, -0.3), draws.uniform(-1, -0.6)])
    light /= np.linalg.norm(light)
    paint = wall_paint = _Paint(draws, period=draws.uniform(0.35, 0.8))
    for number, surfaces in enumerate(_objects(draws, rays)):
        if number:
            paint = _Paint(draws, period=draws.uniform(0.12, 0.45))
        if number > _WALLS and draws.uniform(0, 1) < _HIDDEN:
            paint = wall_paint.plain()
        for hit in surfaces:
            nearer = hit.depth < depth
            depth[nearer] = hit.depth[nearer]
            yield number, nearer, hit, paint, light


def _shade(normal: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return the brightness of N surface points, (N, 1)."""
    return (_AMBIENT + (1 - _AMBIENT) * np.maximum(normal @ light, 0))[:, None]


def _photo(color: np.ndarray, index: int, size: tuple[int, int]) -> np.ndarray:
    """Return a color image with the noise of a sensor, float32 (H, W, 3)."""
    noisy = color + _SENSOR_NOISE * Draws(_STREAM, index, *size).normal(color.shape)
    return np.clip(noisy, 0, 1).astype(np.float32)


class _Paint:
    """Two colors and the pattern that mixes them on a surface."""

    def __init__(self, draws: Draws, *, period: float) -> None:
        base = 0.2 + 0.7 * draws.unit((3,))
        self.colors = np.stack([base, np.clip(base + draws.uniform(0.1, 0.5) * (2 * draws.unit((3,)) - 1), 0.05, 1)])
        self.pattern = patterns.draw(draws, _KINDS, period=period)

    def at(self, coordinates: np.ndarray) -> np.ndarray:
        """Return the colors at (N, 2) coordinates: (N, 3)."""
        share = self.pattern(coordinates[:, 0], coordinates[:, 1])[:, None]
        return self.colors[0] + share * (self.colors[1] - self.colors[0])

    def plain(self) -> _Paint:
        """Return the mean of the two colors, without the pattern."""
        other = object.__new__(_Paint)
        other.colors, other.pattern = self.colors, patterns.plain
        return other


# --------------------------------------------------------------------------------------------------- objects

_WALLS = 2  # in addition to the back wall


def _objects(draws: Draws, rays: np.ndarray) -> Iterator[list[Hit]]:
    """Yield the surfaces of the back wall, the floor, a side wall, and then of each object in front of them."""
    floor = draws.uniform(0.9, 1.4)
    yield [_back_wall(draws, rays)]
    yield [_floor(draws, rays, floor)]
    yield [_side_wall(draws, rays)]
    for _ in range(draws.integer(3, 6)):
        yield [_sphere(draws, rays) if draws.uniform(0, 1) < 0.45 else _box(draws, rays, floor)]
    for _ in range(draws.integer(1, 4)):
        yield [_rod(draws, rays)]
    yield _wire(draws, rays)


def _back_wall(draws: Draws, rays: np.ndarray) -> Hit:
    distance = draws.uniform(3.2, 5.5)
    return plane(
        rays,
        point=np.array([0, 0, distance]),
        normal=np.array([draws.uniform(-0.45, 0.45), draws.uniform(-0.2, 0.2), -1]),
    )


def _floor(draws: Draws, rays: np.ndarray, height: float) -> Hit:
    normal = np.array([draws.uniform(-0.15, 0.15), -1, draws.uniform(-0.1, 0.1)])
    return plane(rays, point=np.array([0, height, 0]), normal=normal)


def _side_wall(draws: Draws, rays: np.ndarray) -> Hit:
    side = draws.choice([-1, 1])
    normal = np.array([-side, 0, draws.uniform(-0.3, 0.3)])
    return plane(rays, point=np.array([side * draws.uniform(1.6, 3.2), 0, 0]), normal=normal)


def _place(draws: Draws, near: float, far: float) -> np.ndarray:
    """Return a point in the camera's view."""
    depth = draws.uniform(near, far)
    return depth * np.array([draws.uniform(-0.5, 0.5), draws.uniform(-0.36, 0.36), 1])


def _sphere(draws: Draws, rays: np.ndarray) -> Hit:
    center = _place(draws, 1.5, 3.6)
    return sphere(rays, center=center, radius=center[2] * draws.uniform(0.07, 0.17))


def _box(draws: Draws, rays: np.ndarray, floor: float) -> Hit:
    """Intersect a box, which stands on the floor more often than not."""
    center = _place(draws, 1.6, 3.8)
    half = center[2] * (0.05 + 0.13 * draws.unit((3,)))
    if draws.uniform(0, 1) < 0.6:
        half[1] = max(half[1], (floor - center[1]) / 2)
        center[1] = floor - half[1]
    return box(rays, center=center, half=half, turn=draws.uniform(0, np.pi / 2))


def _rod(draws: Draws, rays: np.ndarray) -> Hit:
    start = _place(draws, 1.3, 3.0)
    end = start + draws.uniform(0.5, 1.6) * _direction(draws)
    end[2] = max(end[2], 1.0)
    return rod(rays, start=start, end=end, radius=draws.uniform(0.012, 0.04))


def _direction(draws: Draws) -> np.ndarray:
    angle = draws.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle), draws.uniform(-0.5, 0.5)])


def _wire(draws: Draws, rays: np.ndarray, *, pieces: int = 6) -> list[Hit]:
    """Intersect a thin wire that sags between two points."""
    left, right = (side * np.array([1.0, 0, 0]) + _place(draws, 1.8, 3.0) * [0.3, 0.8, 1] for side in (-0.8, 0.8))
    sag, radius = draws.uniform(0.1, 0.5), draws.uniform(0.006, 0.012)
    share = np.linspace(0, 1, pieces + 1)[:, None]
    points = left + share * (right - left) + 4 * sag * share * (1 - share) * [0, 1, 0]
    return [rod(rays, start=start, end=end, radius=radius) for start, end in pairwise(points)]
