"""Where the rays of a camera meet simple surfaces, in closed form.

H, W    the image
rays    directions (x, y, 1) from the camera at the origin: float64 (H, W, 3); x to the right, y downwards, z away
depth   of a point: its z, in metres, infinite where a ray misses
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Hit(NamedTuple):
    """What the rays meet of one surface."""

    depth: np.ndarray  # (H, W)
    normal: np.ndarray  # (H, W, 3), of length 1, towards the camera
    coordinates: np.ndarray  # (H, W, 2), in metres along the surface


def camera_rays(size: tuple[int, int]) -> np.ndarray:
    """Return the rays through the pixels of an image, the longer side 58 degrees wide."""
    height, width = size
    focal = 0.9 * max(size)
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal, np.ones(size)], axis=-1)


def plane(rays: np.ndarray, *, point: np.ndarray, normal: np.ndarray) -> Hit:
    """Meet an endless plane through a point."""
    normal = normal / np.linalg.norm(normal)
    facing = rays @ normal
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = (point @ normal) / facing
    depth = np.where((depth > 0) & np.isfinite(depth), depth, np.inf)
    first = np.cross(normal, [0.0, 1.0, 0.0] if abs(normal[1]) < 0.8 else [1.0, 0.0, 0.0])
    first /= np.linalg.norm(first)
    places = np.where(np.isfinite(depth), depth, 0)[..., None] * rays - point
    coordinates = places @ np.stack([first, np.cross(normal, first)], axis=1)
    towards = normal if point @ normal < 0 else -normal
    return Hit(depth, np.broadcast_to(towards, rays.shape), coordinates)


def sphere(rays: np.ndarray, *, center: np.ndarray, radius: float) -> Hit:
    """Meet the near side of a sphere."""
    a, b = (rays * rays).sum(-1), rays @ center
    inside = b * b - a * (center @ center - radius * radius)
    depth = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    normal = (np.where(inside > 0, depth, 0)[..., None] * rays - center) / radius
    clipped = np.clip(normal, -1, 1)
    around = np.stack([np.arctan2(clipped[..., 0], -clipped[..., 2]), np.arcsin(clipped[..., 1])], axis=-1)
    return Hit(depth, normal, radius * around)


def box(rays: np.ndarray, *, center: np.ndarray, half: np.ndarray, turn: float) -> Hit:
    """Meet a box (slabs: Kay and Kajiya 1986).

    Args:
        rays: the camera's.
        center: its middle, (3,).
        half: half its sides, (3,).
        turn: radians about the upright axis.
    """
    cosine, sine = np.cos(turn), np.sin(turn)
    to_box = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    directions, origin = rays @ to_box.T, -to_box @ center
    directions = np.where(np.abs(directions) < 1e-12, 1e-12, directions)
    ends = (np.sign(directions) * half * np.array([[[[-1]]], [[[1]]]]) - origin) / directions  # (2, H, W, 3)
    enters, leaves = ends[0].max(-1), ends[1].min(-1)
    depth = np.where((enters < leaves) & (enters > 0), enters, np.inf)
    face = ends[0].argmax(-1)
    places = origin + np.where(np.isfinite(depth), depth, 0)[..., None] * directions
    others = np.array([[2, 1], [0, 2], [0, 1]])[face]
    normal = -np.sign(np.take_along_axis(directions, face[..., None], -1)) * np.eye(3)[face]
    return Hit(depth, normal @ to_box, np.take_along_axis(places, others, -1))


def rod(rays: np.ndarray, *, start: np.ndarray, end: np.ndarray, radius: float, focal: float) -> Hit:
    """Meet a thin round rod, never drawn thinner than a pixel and a half.

    Args:
        rays: the camera's.
        start: one end, (3,), before the camera.
        end: the other.
        radius: in metres.
        focal: pixels at a depth of one metre per metre, which tells how thick a pixel is.
    """
    first, last = start[:2] / start[2], end[:2] / end[2]
    span = last - first
    along = np.clip(((rays[..., :2] - first) @ span) / (span @ span), 0, 1)
    # A straight line's inverse depth is linear in the image.
    depth = 1 / ((1 - along) / start[2] + along / end[2])
    offset = rays[..., :2] - first - along[..., None] * span
    sideways = np.array([-span[1], span[0]]) / np.hypot(*span)
    thickness = np.maximum(radius / depth, 0.75 / focal)
    across = np.clip((offset @ sideways) / thickness, -1, 1)
    hit = (offset * offset).sum(-1) < thickness**2
    normal = np.concatenate([across[..., None] * sideways, -np.sqrt(1 - across * across)[..., None]], axis=-1)
    coordinates = np.stack([across * radius, along * np.linalg.norm(end - start)], axis=-1)
    return Hit(np.where(hit, depth, np.inf), normal, coordinates)


def nearest(hits: Sequence[Hit]) -> Hit:
    """Return what the rays meet first of several surfaces."""
    first, *others = hits
    for hit in others:
        nearer = hit.depth < first.depth
        first = Hit(
            *(np.where(nearer[..., None] if b.ndim == 3 else nearer, b, a) for a, b in zip(first, hit, strict=True))
        )
    return first
