"""Masks from boxes without any training: filled boxes, and GrabCut in each box."""

from __future__ import annotations

import cv2
import numpy as np

from train.data.annotated.images import Annotated

_ITERATIONS = 5
_FOREGROUND = (cv2.GC_FGD, cv2.GC_PR_FGD)


def filled_boxes(sample: Annotated) -> np.ndarray:
    """Return every box filled with its class, smaller boxes on top: uint8 (H, W)."""
    labels = np.zeros(sample.image.shape[:2], np.uint8)
    for number in _largest_first(sample.boxes):
        x0, y0, x1, y1 = sample.boxes[number]
        labels[y0:y1, x0:x1] = sample.classes[number]
    return labels


def grabcut(sample: Annotated) -> np.ndarray:
    """Return what GrabCut finds in each box (Rother, Kolmogorov and Blake 2004), smaller boxes on top: uint8 (H, W).

    A box that leaves no background to learn from, or that OpenCV refuses, is filled.
    """
    cv2.setNumThreads(1)  # workers share the cores
    image = np.ascontiguousarray(sample.image[:, :, ::-1])
    labels = np.zeros(image.shape[:2], np.uint8)
    for number in _largest_first(sample.boxes):
        labels[_cut_out(image, sample.boxes[number])] = sample.classes[number]
    return labels


def _largest_first(boxes: np.ndarray) -> np.ndarray:
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.argsort(-sides.prod(axis=1), kind="stable")


def _cut_out(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return which pixels of an image in blue, green, red are the object of a box: bool (H, W)."""
    x0, y0, x1, y1 = map(int, box)
    filled = np.zeros(image.shape[:2], bool)
    filled[y0:y1, x0:x1] = True
    if filled.all():
        return filled
    mask = np.where(filled, np.uint8(cv2.GC_PR_FGD), np.uint8(cv2.GC_BGD))
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its clusters start from random numbers
    try:
        cv2.grabCut(image, mask, None, background, foreground, _ITERATIONS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    except cv2.error:  # fewer pixels than clusters
        return filled
    return np.isin(mask, _FOREGROUND)
