"""The head of a face that was found: landmarks to a fitted head, for use, preparation and
evaluation.
"""

from __future__ import annotations

import jax
import numpy as np

from caphuman_jax.face import segmentation
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.fitting import head_from_photo, heads_from_photos
from caphuman_jax.head.head import Head, unstack


def face_region(landmarks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the face within landmarks (478, 3), in pixels of an image (H, W)."""
    return segmentation.face_mask(segmentation.parse_face(landmarks, shape))


def fit_head(
    model: HeadModel, image: np.ndarray, landmarks: np.ndarray, expression: np.ndarray
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
    images: np.ndarray,
    landmarks: np.ndarray,
    expressions: np.ndarray,
    visible: np.ndarray | None = None,
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
