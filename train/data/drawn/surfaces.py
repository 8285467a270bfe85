"""Closed-form intersections of camera rays with simple surfaces.

H, W    the image
N       the pixels that show a surface
rays    directions (x, y, 1) from the camera at the origin: float64 (H, W, 3); x to the right, y downwards, z away
depth   of a point: its z, in meters
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_TINY = 1e-12  # replaces zero divisors


class Details(NamedTuple):
    """Properties of a surface at some of its points."""

    normal: np.ndarray  # (N, 3), of length 1, towards the camera
    coordinates: np.ndarray  # (N, 2), in meters along the surface


class Hit(NamedTuple):
    """Intersections of the rays with one surface."""

    depth: np.ndarray  # (H, W), infinite where a ray misses
    details: Callable[[np.ndarray], Details]  # of the pixels of a mask (H, W), all of which hit


def camera_rays(size: tuple[int, int]) -> np.ndarray:
    """Return the rays through the pixels of an image, with a field of view of 58 degrees along the longer side."""
    height, width = size
    focal = 0.9 * max(size)
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal, np.ones(size)], axis=-1)


def plane(rays: np.ndarray, *, point: np.ndarray, normal: np.ndarray) -> Hit:
    """Intersect an infinite plane through a point."""
    normal = normal / np.linalg.norm(normal)
    first = np.cross(normal, [0.0, 1.0, 0.0] if abs(normal[1]) < 0.8 else [1.0, 0.0, 0.0])
    first /= np.linalg.norm(first)
    axes = np.stack([first, np.cross(normal, first)], axis=1)
    towards = normal if point @ normal < 0 else -normal
    depth = _divided(float(point @ normal), rays @ normal)
    depth = np.where(depth > 0, depth, np.inf)

    def details(where: np.ndarray) -> Details:
        places = depth[where][:, None] * rays[where] - point
        return Details(np.broadcast_to(towards, places.shape), places @ axes)

    return Hit(depth, details)


def sphere(rays: np.ndarray, *, center: np.ndarray, radius: float) -> Hit:
    """Intersect the near side of a sphere."""
    a, b = (rays * rays).sum(-1), rays @ center
    inside = b * b - a * (center @ center - radius * radius)
    depth = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)

    def details(where: np.ndarray) -> Details:
        normal = np.clip((depth[where][:, None] * rays[where] - center) / radius, -1, 1)
        around = np.stack([np.arctan2(normal[:, 0], -normal[:, 2]), np.arcsin(normal[:, 1])], axis=-1)
        return Details(normal, radius * around)

    return Hit(depth, details)


def box(rays: np.ndarray, *, center: np.ndarray, half: np.ndarray, turn: float) -> Hit:
    """Intersect a box (slab method: Kay and Kajiya 1986).

    Args:
        rays: the camera's.
        center: its middle, (3,).
        half: half its sides, (3,).
        turn: radians about the upright axis.
    """
    cosine, sine = np.cos(turn), np.sin(turn)
    to_box = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    directions, origin = rays @ to_box.T, -to_box @ center
    enters: list[np.ndarray] = []
    leaves: list[np.ndarray] = []
    for axis in range(3):
        along = directions[..., axis]
        middle, width = _divided(-origin[axis], along), np.abs(_divided(half[axis], along))
        enters.append(middle - width)
        leaves.append(middle + width)
    entry, exit_ = (np.maximum(np.maximum(*enters[:2]), enters[2]), np.minimum(np.minimum(*leaves[:2]), leaves[2]))
    depth = np.where((entry < exit_) & (entry > 0), entry, np.inf)

    def details(where: np.ndarray) -> Details:
        face = np.argmax([time[where] for time in enters], axis=0)
        places = origin + depth[where][:, None] * directions[where]
        others = np.array([[2, 1], [0, 2], [0, 1]])[face]
        ahead = np.sign(np.take_along_axis(directions[where], face[:, None], -1))
        return Details((-ahead * np.eye(3)[face]) @ to_box, np.take_along_axis(places, others, -1))

    return Hit(depth, details)


def rod(rays: np.ndarray, *, start: np.ndarray, end: np.ndarray, radius: float) -> Hit:
    """Intersect a thin round rod, drawn at least a pixel and a half wide.

    Args:
        rays: the camera's.
        start: one end, (3,), before the camera.
        end: the other.
        radius: in meters.
    """
    pixel = rays[0, 1, 0] - rays[0, 0, 0]
    first, last = start[:2] / start[2], end[:2] / end[2]
    span = last - first
    x, y = rays[..., 0] - first[0], rays[..., 1] - first[1]
    along = np.clip((x * span[0] + y * span[1]) / (span @ span), 0, 1)
    # A straight line's inverse depth is linear in the image.
    nearness = 1 / start[2] + along * (1 / end[2] - 1 / start[2])
    thickness = np.maximum(radius * nearness, 0.75 * pixel)
    outside = (x - along * span[0]) ** 2 + (y - along * span[1]) ** 2 >= thickness**2
    depth = np.where(outside, np.inf, 1 / nearness)

    def details(where: np.ndarray) -> Details:
        sideways = np.array([-span[1], span[0]]) / np.hypot(*span)
        across = np.clip((x[where] * sideways[0] + y[where] * sideways[1]) / thickness[where], -1, 1)
        normal = np.concatenate([across[:, None] * sideways, -np.sqrt(1 - across * across)[:, None]], axis=-1)
        length = float(np.linalg.norm(end - start))
        return Details(normal, np.stack([across * radius, along[where] * length], axis=-1))

    return Hit(depth, details)


def _divided(value: float, by: np.ndarray) -> np.ndarray:
    return value / np.where(np.abs(by) < _TINY, _TINY, by)
