"""Which pixels of a portrait are clothes."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from caphuman_jax.face.colors import like

_SMALLEST = 0.01  # share of the picture of a piece that counts


def clothes_mask(
    picture: UInt8[np.ndarray, "s s 3"],
    person: Float[np.ndarray, "s s"],
    landmarks: Float[np.ndarray, "478 d"],
    long_hair: bool,
) -> Float[np.ndarray, "s s"]:
    """Mask (S, S) float32 in [0, 1] of the clothes of a person whose head is about upright.

    By position and color, no network: what of the person lies below the chin, or higher to its
    side where shoulders are, and does not have the color of this face's skin. Where hair may hang
    to the shoulders, what has the hair's color counts only where hair hardly is. By eye on about
    seventy portraits; collars next to the neck are sometimes missed.

    Args:
        picture: RGB.
        person: probability of a person.
        landmarks: 478 points as fractions of the side.
        long_hair: whether hair may reach the shoulders.
    """
    size = picture.shape[0]
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
    tall, top = high[1] - low[1], landmarks[10, 1]
    beside = abs(x - (low[0] + high[0]) / 2) / tall
    below = (y - high[1]) / tall  # the chin
    forehead = (beside < 0.2) & (y > top + 0.05 * tall) & (y < top + 0.15 * tall)
    cheeks = (beside < 0.3) & (y > top + 0.5 * tall) & (y < top + 0.62 * tall)
    skin = like(lab, cheeks) | like(lab, forehead)
    surely = (below > 0.05) | ((beside > 0.72) & (below > -0.25))
    reach = 0.1 if long_hair else 0.2
    perhaps = ((beside > 0.42) & (below > -reach)) | ((beside > 0.28) & (below > -0.4 * reach))
    if long_hair:
        above = (beside < 0.3) & (y < top - 0.06 * tall) & (y > top - 0.3 * tall)
        perhaps &= ~like(lab, above & (person > 0.9) & ~skin)
    face = cv2.convexHull(np.round(landmarks[:, :2] * size).astype(np.int32))
    found = ((person > 0.5) & (surely | perhaps) & ~skin).astype(np.uint8)
    cv2.fillConvexPoly(found, face, 0)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((size // 64 | 1,) * 2, np.uint8))
    _, pieces, facts, _ = cv2.connectedComponentsWithStats(found)
    large = facts[:, cv2.CC_STAT_AREA] > _SMALLEST * size * size
    large[0] = False  # what is not clothes
    return cv2.GaussianBlur(large[pieces].astype(np.float32), (0, 0), size / 256)
