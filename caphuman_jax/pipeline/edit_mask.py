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
from caphuman_jax.head.hints import fit_to_size, render_hints
from caphuman_jax.head.lighting import posed
from caphuman_jax.io.images import PhotoSource, photo_name, read_photo
from caphuman_jax.pipeline.rough_edit import Motion, border_fade, smooth

MASKS = ("auto", "face", "head", "whole")
"""Masks that need no picture."""

# Parts of the canvas' height: how far a mask reaches beyond what it covers, and how far it fades.
_GROWN, _FEATHER = 0.03, 0.06
# A head stays where it is if less than this part of the canvas moves, outside the face, by more
# than this part of its height.
_STILL = 0.01
_NECK = 0.2  # of the face's height below the chin
_BROW = 0.25  # of the face's height below the hairline
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
        kind: "face": the face. "head": the silhouette down to the neck, and the hair around it.
            "auto": the face, and if the head moves or its light changes also ears and neck, and
            what the photo did not show.
    """
    height, width = canvas.shape[:2]
    face = _face(model, new, height, width)
    covered = face
    rows = np.flatnonzero(face.any(axis=1))
    alpha = render_hints(model, new, height, width, with_alpha=True)[1]
    head = np.asarray(alpha)[..., 0] > 0
    head[rows[-1] + int(_NECK * np.ptp(rows)) + 1 :] = False
    if kind == "auto":
        beyond = feathered(face, _GROWN * height, 1) == 0
        far = np.abs(motion.flow).max(axis=-1) > _STILL * height
        lit = np.abs(motion.light - 1).max(axis=-1) > 0.05
        if (beyond & (far | lit)).mean() > _STILL:
            # Hair and scalp have moved along and are sharper than what would be sampled.
            below = head.copy()
            below[: rows[0] + int(_BROW * np.ptp(rows))] = False
            covered = face | below | (motion.hidden[..., 0] > 0.3)
    elif kind == "head":
        covered = face | head | _hair(head, face, canvas)
    return feathered(covered, _GROWN * height, _FEATHER * height) * border_fade(height, width)


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
        PhotoError: it cannot be read, has another size than the photo, or covers nothing.
    """
    mask = read_photo(source).astype(np.float32).mean(axis=-1) / 255
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


def _face(model: HeadModel, head: Head, height: int, width: int) -> np.ndarray:
    """(H, W) bool: the hull of a head's landmarks."""
    points = np.asarray(model.landmarks(posed(model, fit_to_size(head, height, width))[0]))
    points = points[np.asarray(model.landmark_valid), :2].astype(np.float32)
    region = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(region, np.round(cv2.convexHull(points)).astype(np.int32), 1)
    return region > 0


def _hair(silhouette: np.ndarray, face: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """(H, W) bool: the person around the head and above the chin."""
    rows = np.flatnonzero(face.any(axis=1))
    around = feathered(silhouette, _HAIR * np.ptp(np.flatnonzero(silhouette.any(axis=1))), 1) > 0
    around[rows[-1] + 1 :] = False
    return around & (person_mask(canvas) > 0.5)
