"""Measures images: face, head, recognition vectors, and what the metrics add."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from caphuman_jax.evaluation.metrics.registry import METRICS
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement
from caphuman_jax.face import recognition, segmentation
from caphuman_jax.face.face import Face, find_faces
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.fitting import heads_from_photos
from caphuman_jax.head.head import Head, unstack


def measure_images(model: HeadModel, images: Sequence[np.ndarray]) -> list[ImageMeasurement]:
    """Measure images (S, S, 3) uint8 of one size. Compiled once for each number and size of images."""
    found = [find_faces(image) for image in images]
    heads = _fit(model, images, [faces[0] if faces else None for faces in found])
    return [
        _measurement(model, image, faces, head) for image, faces, head in zip(images, found, heads)
    ]


def recognition_vectors(image: np.ndarray, landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Vectors of one face by each of RECOGNIZERS."""
    return {
        "dlib": recognition.dlib_vector(image, landmarks),
        "mobilefacenet": recognition.identity(image, landmarks)[0],
    }


def _fit(
    model: HeadModel, images: Sequence[np.ndarray], faces: Sequence[Face | None]
) -> list[Head | None]:
    """Heads; another face stands in where there is none, so that the batch keeps its size and the
    fit is compiled once.
    """
    known = next((face for face in faces if face), None)
    if known is None:
        return [None] * len(faces)
    filled = [face or known for face in faces]
    landmarks = np.stack([face.landmarks for face in filled]).astype(np.float32)
    expression = np.stack(
        [model.expression_from_arkit(expression_names(), face.expression) for face in filled]
    )
    masks = np.stack(
        [
            segmentation.face_mask(segmentation.parse_face(face.landmarks, p.shape[:2]))
            for face, p in zip(filled, images)
        ]
    )
    heads = heads_from_photos(
        model,
        np.stack(images).astype(np.float32) / 255,
        landmarks,
        expression,
        masks.astype(np.float32),
    )
    return [head if face else None for head, face in zip(unstack(jax.device_get(heads)), faces)]


def _measurement(model, image, faces, head):
    landmarks = faces[0].landmarks if faces else None
    values = {
        name: measure(image, landmarks)
        for metric in METRICS
        for name, measure in metric.measures.items()
    }
    if not faces:
        vectors = {
            "dlib": np.full(128, np.nan, np.float32),
            "mobilefacenet": np.full(192, np.nan, np.float32),
        }
        return ImageMeasurement(0, HeadParams.missing(model), vectors, values)
    return ImageMeasurement(
        len(faces), HeadParams.of(model, head), recognition_vectors(image, landmarks), values
    )
