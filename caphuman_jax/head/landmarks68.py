"""A head as 68 dots: what an OpenPose ControlNet is shown to strengthen the head ("pi*" of
CapHuman).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from caphuman_jax.head.base import Morphable, landmarks
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import fit_to_size
from caphuman_jax.head.lighting import posed

# The 68 points of the iBUG annotation (arXiv 1803.07835 uses the same) in the numbering of
# MediaPipe's face mesh: jaw, brows, nose, eyes, lips; right and left of the picture in iBUG's
# order.
IBUG_68 = (
    162,
    234,
    93,
    58,
    172,
    136,
    149,
    148,
    152,
    377,
    378,
    365,
    397,
    288,
    323,
    454,
    389,
    71,
    63,
    105,
    66,
    107,
    336,
    296,
    334,
    293,
    301,
    168,
    197,
    5,
    4,
    75,
    97,
    2,
    326,
    305,
    33,
    160,
    158,
    133,
    153,
    144,
    362,
    385,
    387,
    263,
    373,
    380,
    61,
    39,
    37,
    0,
    267,
    269,
    291,
    405,
    314,
    17,
    84,
    181,
    78,
    82,
    13,
    312,
    308,
    317,
    14,
    87,
)
RADIUS = 3  # pixels, in a picture of 512
_SUBPIXEL_BITS = 4


def landmarks_68(model: Morphable, head: Head, height: int, width: int) -> np.ndarray:
    """Where the 68 landmarks of a head lie in a picture of height × width: (68, 2) float32, x and y
    in pixels.
    """
    points, _ = posed(model, fit_to_size(head, height, width))
    return np.asarray(landmarks(model, points))[list(IBUG_68), :2]


def draw_dots(points: np.ndarray, height: int, width: int) -> np.ndarray:
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
    model: Morphable, heads: Sequence[Head], height: int, width: int
) -> np.ndarray:
    """The dots of all heads in one picture (H, W, 3) uint8."""
    return np.maximum.reduce(
        [draw_dots(landmarks_68(model, head, height, width), height, width) for head in heads]
    )
