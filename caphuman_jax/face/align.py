"""Similarity transforms and the aligned crops made with them.

A transform is a float64 (2, 3) matrix that takes picture pixels to crop pixels. Pixel (i, j) covers
[j, j+1) x [i, i+1): points are continuous coordinates, 0 at the picture's outer edge.
"""

from __future__ import annotations

import cv2
import numpy as np

from caphuman_jax.errors import PhotoError

# Landmark indices; right and left are the person's own.
RIGHT_EYE_CORNERS = (33, 133)
LEFT_EYE_CORNERS = (263, 362)
NOSE_TIP = 4
RIGHT_MOUTH_CORNER = 61
LEFT_MOUTH_CORNER = 291


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares rotation, uniform scale and shift, without reflection, from `source` to
    `target` points.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    PAMI 1991. Both (N, 2), N >= 2. Returns (2, 3). Raises PhotoError when the source points
    coincide."""
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    s, t = source - source_mean, target - target_mean
    variance = (s**2).sum() / len(s)
    if not variance > 1e-12:
        raise PhotoError(
            "the face cannot be aligned: its landmarks lie on one point; try a larger or sharper "
            "photo"
        )
    u, d, vt = np.linalg.svd(t.T @ s / len(s))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u * sign @ vt
    scale = (d * sign).sum() / variance
    return np.concatenate(
        [scale * rotation, (target_mean - scale * rotation @ source_mean)[:, None]], axis=1
    )


def crop_transform(center: np.ndarray, side: float, angle: float, size: int) -> np.ndarray:
    """Transform of a square crop: `center` (x, y) and `side` in picture pixels, turned by `angle`
    radians (the crop's x axis points along `angle` in the picture, y down), scaled to `size`
    pixels. Returns (2, 3).
    """
    scale = size / side
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    rotation = np.array([[c, s], [-s, c]])
    return np.concatenate(
        [rotation, (size / 2 - rotation @ np.asarray(center, np.float64))[:, None]], axis=1
    )


def invert(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a (2, 3) transform."""
    inverse = np.linalg.inv(matrix[:, :2])
    return np.concatenate([inverse, -inverse @ matrix[:, 2:]], axis=1)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through a transform."""
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def warp(
    image: np.ndarray, matrix: np.ndarray, size: int | tuple[int, int], border: str = "black"
) -> np.ndarray:
    """Crop of `size` (side, or (height, width)) that `matrix` describes; `border` is "black" or
    "repeat".

    Where the crop is much smaller than its part of the picture, the part is first shrunk by area,
    against aliasing."""
    height, width = (size, size) if isinstance(size, int) else size
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    shrink = int(1 / scale) if scale < 0.5 else 1
    if shrink > 1:
        image, matrix = _shrink_part(image, matrix, (height, width), shrink)
    # cv2 counts from pixel centers.
    matrix = matrix.copy()
    matrix[:, 2] += 0.5 * matrix[:, :2].sum(1) - 0.5
    mode = {"black": cv2.BORDER_CONSTANT, "repeat": cv2.BORDER_REPLICATE}[border]
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=mode)


def _shrink_part(image, matrix, size, factor):
    """The part of the picture under the crop, `factor` times smaller, and the transform from it."""
    height, width = size
    corners = apply(
        invert(matrix), np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    )
    limit = np.array(image.shape[1::-1])
    low = np.clip(np.floor(corners.min(0)).astype(int) - factor, 0, limit - 1)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + factor, low + 1, limit)
    part = image[low[1] : high[1], low[0] : high[0]]
    small_size = np.maximum(np.round((high - low) / factor).astype(int), 1)
    small = cv2.resize(part, tuple(int(v) for v in small_size), interpolation=cv2.INTER_AREA)
    back = np.diag((high - low) / small_size)
    return small, np.concatenate(
        [matrix[:, :2] @ back, (matrix[:, :2] @ low + matrix[:, 2])[:, None]], axis=1
    )


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Five points (5, 2) of 478 landmarks: right eye, left eye, nose tip, right and left mouth
    corner (the person's own sides; the first eye is the left-most in an upright picture).
    """
    xy = np.asarray(landmarks)[:, :2]
    return np.stack(
        [
            xy[list(RIGHT_EYE_CORNERS)].mean(0),
            xy[list(LEFT_EYE_CORNERS)].mean(0),
            xy[NOSE_TIP],
            xy[RIGHT_MOUTH_CORNER],
            xy[LEFT_MOUTH_CORNER],
        ]
    )
