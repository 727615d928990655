"""A canvas back into its photo: colors matched at the seam, nothing changed outside the mask."""

from __future__ import annotations

import cv2
import numpy as np

from caphuman_jax.face import align
from caphuman_jax.pipeline.canvas import Canvas

# Part of the canvas' height: how far colors are matched around the seam.
_REACH = 0.05
_ALIKE = 0.12  # differences of this much count little: another thing is there, not another color
# A pixel keeps what the autoencoder loses of the photo where sampling changed it by less than
# `_SAME` (of 1) in a neighborhood of `_NEAR` canvas pixels.
_SAME, _NEAR = 0.08, 2.0
_COLOR = 0.03  # part of the canvas' height: the autoencoder's error in what is coarser is color


def paste(canvas: Canvas, made: np.ndarray) -> np.ndarray:
    """The photo (H, W, 3) uint8 with a made canvas (h, w, 3) uint8 in it.

    The photo's own pixels are moved and lit first (`Canvas.motion`), at the photo's resolution;
    what was made is blended over them by the mask. Where neither reaches, the pixels are the
    photo's. Where sampling left the autoencoder's picture of the photo as it was
    (`Canvas.reconstruction`), the photo's own pixels stay, as sharp as they are.
    """
    photo, (height, width) = canvas.photo, made.shape[:2]
    back = align.invert(canvas.place)
    corners = align.apply(back, np.array([[0, 0], [width, height]], np.float64))
    limit = np.array(photo.shape[1::-1])
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, limit - 1)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int), low + 1, limit)
    part, size = np.s_[low[1] : high[1], low[0] : high[0]], (high[1] - low[1], high[0] - low[0])
    back[:, 2] -= low
    own = photo[part].astype(np.float32)
    moved, changed = own, np.zeros(own.shape[:2], bool)
    if canvas.motion is not None:
        moved = canvas.motion.enlarged(back, size).apply(own)
        touched = canvas.motion.touched.astype(np.float32)
        changed = align.warp(touched, back, size, border="repeat") > 0
    if canvas.photo_mask is None:
        weight = np.clip(_enlarged(canvas.mask, back, size), 0, 1)
    else:
        weight = canvas.photo_mask[part]
    weight = np.where(weight > 1 / 255, weight, 0)[..., None]
    new = _layer(canvas, made, moved, back, size)
    mixed = np.rint(weight * new + (1 - weight) * moved).clip(0, 255).astype(np.uint8)
    result = photo.copy()
    result[part] = np.where(changed[..., None] | (weight > 0), mixed, photo[part])
    return result


def match_colors(made: np.ndarray, before: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What was made (h, w, 3), float32, with the colors of what was there before along the mask's
    edge, fading inwards.

    The difference of the two along the edge, spread by a Gaussian, is added. Where they differ
    much, something else is shown, and its color is not taken.
    """
    made = made.astype(np.float32)
    difference = cv2.GaussianBlur((before.astype(np.float32) - made) / 255, (0, 0), 2)
    sigma = _REACH * len(made)
    near = cv2.GaussianBlur(np.asarray(mask < 0.5, np.float32), (0, 0), sigma / 3)
    alike = np.exp(-np.square(np.abs(difference).max(axis=-1) / _ALIKE))
    weight = (near * (mask < 0.8) * alike)[..., None]
    spread = lambda x: cv2.GaussianBlur(x, (0, 0), sigma).reshape(*x.shape[:2], -1)
    return made + 255 * spread(weight * difference) / (spread(weight) + 0.1)


def _layer(
    canvas: Canvas, made: np.ndarray, moved: np.ndarray, back: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """(H, W, 3) float32: what was made, at the photo's resolution.

    Args:
        canvas: of the edit.
        made: (h, w, 3) uint8.
        moved: (H, W, 3), the photo's part after its motion.
        back: (2, 3), canvas pixels to those of the part.
        size: (H, W) of the part.
    """
    enlarged = lambda image: _enlarged(image, back, size).reshape(*size, -1)
    seen, rough = canvas.reconstruction, canvas.rough.astype(np.float32)
    if seen is None:
        return enlarged(match_colors(made, rough, canvas.mask))
    made = match_colors(made, seen, canvas.mask)
    changed = cv2.GaussianBlur(np.abs(made - seen).max(axis=-1) / 255, (0, 0), _NEAR)
    same = np.clip(enlarged(np.exp(-np.square(changed / _SAME))), 0, 1)
    color = cv2.GaussianBlur(rough - seen, (0, 0), _COLOR * len(seen))
    return enlarged(made) + same * (moved - enlarged(seen)) + (1 - same) * enlarged(color)


def _enlarged(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A canvas enlarged (bicubic) or shrunk to its part (height, width) of the photo; float32."""
    image = np.asarray(image, np.float32)
    if abs(np.linalg.det(matrix[:, :2])) < 0.25:
        return align.warp(image, matrix, size, border="repeat")
    matrix = matrix.copy()
    matrix[:, 2] += 0.5 * matrix[:, :2].sum(1) - 0.5  # cv2 counts from pixel centers
    flags, border = cv2.INTER_CUBIC, cv2.BORDER_REPLICATE
    return cv2.warpAffine(image, matrix, size[::-1], flags=flags, borderMode=border)
