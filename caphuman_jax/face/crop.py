"""The square around a head: how a photo is framed for the networks, in training as in use."""

from __future__ import annotations

import numpy as np

from caphuman_jax.face import align

HEAD_SQUARE = 1.8  # side of the square over the larger side of the landmarks' upright box
MARGIN = 1.35
"""Side of the wider square over the head square: training shifts and rotates within it, and the
corners of a tilted face's recognition crop lie inside it."""
_EYE_CORNERS = (33, 263)


def head_square(landmarks: np.ndarray, factor: float = HEAD_SQUARE) -> tuple[np.ndarray, float]:
    """Center (x, y) and side, in photo pixels, of the upright square around the head with these
    landmarks (478, 2+).

    The landmarks fill a little over half of it; hair, ears and a collar have room.
    """
    xy = np.asarray(landmarks, np.float64)[:, :2]
    dx, dy = xy[_EYE_CORNERS[1]] - xy[_EYE_CORNERS[0]]
    angle = np.arctan2(dy, dx)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = xy @ axes.T
    low, high = turned.min(0), turned.max(0)
    return axes.T @ ((low + high) / 2), factor * float((high - low).max())


def crop_square(
    photo: np.ndarray, center: np.ndarray, side: float, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The square as a (size, size, 3) picture, the (2, 3) transform into it, and the part of it
    that the photo covers.

    Outside the photo its edge is repeated; the covered part is (x0, y0, x1, y1) in crop pixels.
    """
    matrix = align.crop_transform(center, side, 0.0, size)
    height, width = photo.shape[:2]
    corners = align.apply(matrix, np.array([[0, 0], [width, height]], np.float64))
    covered = np.clip(corners.reshape(4), 0, size).astype(np.float32)
    return align.warp(photo, matrix, size, border="repeat"), matrix, covered
