"""A head as 68 dots: what an OpenPose ControlNet is shown to strengthen the head ("pi*" of
CapHuman).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from caphuman_jax.face.landmark_indices import IBUG_68
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import fit_to_size
from caphuman_jax.head.lighting import posed

RADIUS = 3  # pixels, in a picture of 512
_SUBPIXEL_BITS = 4


def landmarks_68(
    model: HeadModel, head: Head, height: int, width: int
) -> Float[np.ndarray, "68 2"]:
    """Where the 68 landmarks of a head lie in a picture of height × width: (68, 2) float32, x and y
    in pixels.
    """
    points, _ = posed(model, fit_to_size(head, height, width))
    return np.asarray(model.landmarks(points))[list(IBUG_68), :2]


def draw_dots(
    points: Float[np.ndarray, "n 2"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """White dots on black, (H, W, 3) uint8; their radius is 3 pixels where the picture's smaller
    side is 512, and in proportion elsewhere.
    """
    canvas = np.zeros((height, width), np.uint8)
    radius = max(1.0, RADIUS * min(height, width) / 512)
    fixed = 2**_SUBPIXEL_BITS
    for x, y in np.asarray(points, np.float64):
        if np.isfinite((x, y)).all() and abs(x) < 1e5 and abs(y) < 1e5:
            center = tuple(
                int(round((v - 0.5) * fixed)) for v in (x, y)
            )  # cv2 counts from pixel centers
            cv2.circle(
                canvas, center, int(round(radius * fixed)), 255, cv2.FILLED, shift=_SUBPIXEL_BITS
            )
    return np.repeat(canvas[..., None], 3, axis=2)


def landmark_picture(
    model: HeadModel, heads: Sequence[Head], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """The dots of all heads in one picture (H, W, 3) uint8."""
    return np.maximum.reduce(
        [draw_dots(landmarks_68(model, head, height, width), height, width) for head in heads]
    )
