"""A canvas back into its photo: colors matched at the seam, nothing changed outside the mask."""

from __future__ import annotations

import cv2
import numpy as np

from caphuman_jax.face import align
from caphuman_jax.pipeline.canvas import Canvas

# Part of the canvas' height: how far colors are matched around the seam.
_REACH = 0.05
_ALIKE = 0.12  # differences of this much count little: another thing is there, not another color
# The photo's own detail, finer than this many canvas pixels, is kept where what was made differs
# from it by less than `_SAME` (of 1) in everything coarser.
_DETAIL, _SAME = 1.2, 0.08


def paste(canvas: Canvas, made: np.ndarray, keep_detail: bool = True) -> np.ndarray:
    """The photo (H, W, 3) uint8 with a made canvas (h, w, 3) uint8 in it.

    The photo's own pixels are moved and lit first (`Canvas.motion`), at the photo's resolution;
    what was made is blended over them by the mask. Where neither reaches, the pixels are the
    photo's. With `keep_detail` the photo's detail that is too fine for the model stays where the
    model made the same thing.
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
    matched = match_colors(made, canvas.rough, canvas.mask)
    matched = _enlarged(matched, back, size)
    if keep_detail:
        matched = matched + _detail(canvas, made, moved, back, size)
    mixed = np.rint(weight * matched + (1 - weight) * moved).clip(0, 255).astype(np.uint8)
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


def _detail(
    canvas: Canvas, made: np.ndarray, moved: np.ndarray, back: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """(H, W, 3) float32: what the moved photo has of detail that is too fine for the model, where
    the model made the same thing.
    """
    blur = lambda x, sigma: cv2.GaussianBlur(x, (0, 0), sigma)
    coarse = blur(canvas.rough.astype(np.float32), _DETAIL)
    difference = np.abs(blur(made.astype(np.float32), _DETAIL) - coarse).max(axis=-1) / 255
    same = np.exp(-np.square(blur(difference, 2) / _SAME))
    if canvas.motion is not None:
        same = same * (1 - canvas.motion.hidden[..., 0])
    fine = moved - blur(moved, _DETAIL * canvas.enlargement)
    return fine * np.clip(_enlarged(same, back, size), 0, 1)[..., None]


def _enlarged(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A canvas enlarged (bicubic) or shrunk to its part (height, width) of the photo; float32."""
    image = np.asarray(image, np.float32)
    if abs(np.linalg.det(matrix[:, :2])) < 0.25:
        return align.warp(image, matrix, size, border="repeat")
    matrix = matrix.copy()
    matrix[:, 2] += 0.5 * matrix[:, :2].sum(1) - 0.5  # cv2 counts from pixel centers
    flags, border = cv2.INTER_CUBIC, cv2.BORDER_REPLICATE
    return cv2.warpAffine(image, matrix, size[::-1], flags=flags, borderMode=border)
