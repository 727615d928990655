"""The head of a face that was found: landmarks to a fitted head, for use, preparation and
evaluation.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from caphuman_jax.face import segmentation
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.fitting import head_from_photo, heads_from_photos
from caphuman_jax.head.head import Head, unstack


def face_region(
    landmarks: Float[np.ndarray, "478 d"], shape: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """(H, W) bool: the face within landmarks (478, 3), in pixels of an image (H, W)."""
    return segmentation.face_mask(segmentation.parse_face(landmarks, shape))


def fit_head(
    model: HeadModel,
    image: UInt8[np.ndarray, "h w 3"],
    landmarks: Float[np.ndarray, "478 3"],
    expression: Float[np.ndarray, " e"],
) -> Head:
    """Fit a head to one face.

    Args:
        model: the head model.
        image: (H, W, 3) uint8.
        landmarks: (478, 3) in the image's pixels.
        expression: (E,) weights in [0, 1] of `landmarks.expression_names`.

    Raises:
        HeadError: no head fits.
    """
    weights = model.expression_from_arkit(expression_names(), expression)
    region = face_region(landmarks, image.shape[:2])
    return head_from_photo(model, image, landmarks, weights, region)


def fit_heads(
    model: HeadModel,
    images: UInt8[np.ndarray, "n h w 3"],
    landmarks: Float[np.ndarray, "n 478 3"],
    expressions: Float[np.ndarray, "n e"],
    visible: Float[np.ndarray, "n h w"] | None = None,
) -> list[Head]:
    """Fit heads to a batch of faces; compiled once for each shape.

    Args:
        model: the head model.
        images: (N, H, W, 3) uint8.
        landmarks: (N, 478, 3) in the images' pixels.
        expressions: (N, E) as in `fit_head`.
        visible: (N, H, W) float32, 0 where the image shows nothing of the photo.

    Returns:
        N heads, of NumPy arrays.
    """
    regions = np.stack([face_region(points, images.shape[1:3]) for points in landmarks])
    regions = regions.astype(np.float32)
    heads = heads_from_photos(
        model,
        images.astype(np.float32) / 255,
        landmarks.astype(np.float32),
        model.expression_from_arkit(expression_names(), expressions),
        regions if visible is None else visible * regions,
    )
    return unstack(jax.device_get(heads))
