"""Which part of a photo an edit makes again: both silhouettes of the head and the hair around it,
or what a mask picture says.
"""

from __future__ import annotations

import cv2
import numpy as np

from caphuman_jax.errors import PhotoError
from caphuman_jax.face.segmentation import person_mask
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import render_hints
from caphuman_jax.io.images import PhotoSource, photo_name, read_mask_picture
from caphuman_jax.pipeline.rough_edit import Motion, border_fade, face_region, smooth, surely_person

MASKS = ("auto", "face", "head", "whole")
"""Masks that need no picture."""

# Parts of the canvas' height: how far a mask reaches beyond what it covers, and how far it fades.
_GROWN, _FEATHER = 0.03, 0.06
_NECK = 0.2  # of the face's height below the chin
# Hair: the person in the photo this part of the head's height around the head, down to the chin.
_HAIR = 0.18


def head_mask(
    model: HeadModel,
    new: Head,
    canvas: np.ndarray,
    motion: Motion,
    kind: str = "auto",
) -> np.ndarray:
    """(H, W) float32 in [0, 1]: what of a canvas is sampled again, 1 where nothing of it stays.

    Args:
        model: of the head.
        new: the head that the canvas is to show.
        canvas: (H, W, 3) uint8, after the motion: the old head is already where the new one is.
        motion: from the old head to the new one.
        kind: "auto": what of the face the photo does not show. "face": the face. "head": the
            silhouette down to the neck, and the hair around it.
    """
    height, width = canvas.shape[:2]
    face = face_region(model, new, height, width)
    fade = border_fade(height, width)
    if kind == "head":
        rows = np.flatnonzero(face.any(axis=1))
        alpha = render_hints(model, new, height, width, with_alpha=True)[1]
        head = np.asarray(alpha)[..., 0] > 0
        head[rows[-1] + int(_NECK * np.ptp(rows)) + 1 :] = False
        covered = face | head | _hair(head, face, canvas)
        return feathered(covered, _GROWN * height, _FEATHER * height) * fade
    # What is around and behind the face is sharper than what would be sampled.
    depth = cv2.distanceTransform(face.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    person = np.maximum(surely_person(canvas), smooth(depth / (_FEATHER * height) - 0.5))
    mask = feathered(face, 0, _FEATHER * height) * person * fade
    if kind == "auto":
        unknown = face & (motion.reshaped[..., 0] > 0.5)
        mask = np.minimum(mask, feathered(unknown, _GROWN * height, _FEATHER * height))
    return mask


def feathered(covered: np.ndarray, grown: float, feather: float) -> np.ndarray:
    """(H, W) float32: 1 on a region (H, W) bool and up to `grown` pixels around it, then falling
    smoothly to 0 over `feather` pixels.
    """
    if not covered.any():
        return np.zeros(covered.shape, np.float32)
    distance = cv2.distanceTransform(
        (~covered).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return smooth(1 - (distance - grown) / max(feather, 1e-6))


def read_mask(source: PhotoSource, size: tuple[int, int], photo: str) -> np.ndarray:
    """(H, W) float32 in [0, 1] of a mask picture: white is made again, black stays.

    Args:
        source: the picture.
        size: (height, width) of the photo, upright.
        photo: its name, for messages.

    Raises:
        PhotoError: it cannot be read, has transparent parts, has another size than the photo, or
            covers nothing.
    """
    mask = read_mask_picture(source)
    if mask.shape != tuple(size):
        raise PhotoError(
            f"the mask {photo_name(source)} is {mask.shape[1]}x{mask.shape[0]} pixels, {photo} "
            f"{size[1]}x{size[0]}; they must have the same size"
        )
    if not (mask > 0.5).any():
        raise PhotoError(
            f"the mask {photo_name(source)} covers nothing; paint white what is to be made again"
        )
    return mask


def latent_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """(H/f, W/f, 1) float32 of a mask (H, W): 1 where it covers any pixel of a latent, else 0."""
    height, width = (side // factor for side in mask.shape)
    blocks = mask.reshape(height, factor, width, factor)
    return (blocks.max(axis=(1, 3)) > 1 / 255).astype(np.float32)[..., None]


def _hair(silhouette: np.ndarray, face: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """(H, W) bool: the person around the head and above the chin."""
    rows = np.flatnonzero(face.any(axis=1))
    around = feathered(silhouette, _HAIR * np.ptp(np.flatnonzero(silhouette.any(axis=1))), 1) > 0
    around[rows[-1] + 1 :] = False
    return around & (person_mask(canvas) > 0.5)
