"""Measures images: face, head, recognition vectors, and what the metrics add."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.evaluation.metrics.base import Shown
from caphuman_jax.evaluation.metrics.registry import METRICS
from caphuman_jax.evaluation.outcome import ARCFACE, HeadParams, ImageMeasurement
from caphuman_jax.face import arcface, recognition
from caphuman_jax.face.face import Face, find_faces
from caphuman_jax.head.base import HeadEstimator, HeadModel
from caphuman_jax.head.face_fitting import fit_heads
from caphuman_jax.head.head import Head

_MOST_THREADS = 8
_T = TypeVar("_T")
_R = TypeVar("_R")


def measure_images(
    model: HeadModel,
    images: Sequence[np.ndarray],
    head_of: HeadEstimator | None = None,
    count: int | None = None,
) -> list[ImageMeasurement]:
    """Measure images; compiled once for each number and size.

    Args:
        model: head model.
        images: (S, S, 3) uint8, of one size.
        head_of: estimates the heads; None: they are fitted to landmarks.
        count: only the first images are measured, the others fill the batch up; None: all.
    """
    found = _in_threads(find_faces, list(images[:count]))
    if count is not None:
        found += [found[-1]] * (len(images) - count)
    largest = [faces[0] if faces else None for faces in found]
    heads = (
        _fit(model, images, largest)
        if head_of is None
        else _estimate(head_of, images[:count], largest)
    )
    parts = list(zip(images[:count], found, heads))
    return _in_threads(lambda part: _measurement(model, *part), parts)


def recognition_vectors(
    image: np.ndarray, landmarks: np.ndarray, known: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Vectors of one face by each of RECOGNIZERS, and by ArcFace where the user has it; `known`:
    mobilefacenet's, if already computed.
    """
    vectors = {
        "dlib": recognition.dlib_vector(image, landmarks),
        "mobilefacenet": recognition.identity(image, landmarks)[0] if known is None else known,
    }
    if (network := _arcface()) is not None:
        crop = recognition.mobilefacenet_crop(image, landmarks)
        vectors[ARCFACE] = network(crop[None])[0]
    return vectors


def _arcface() -> arcface.ArcFace | None:
    try:
        return arcface.find()
    except ModelFolderError:
        return None


def _in_threads(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """function of each item, in their order. The networks of `face` use one thread each."""
    with ThreadPoolExecutor(max(1, min(len(items), os.cpu_count() or 1, _MOST_THREADS))) as pool:
        return list(pool.map(function, items))


def _estimate(
    head_of: HeadEstimator, images: Sequence[np.ndarray], faces: Sequence[Face | None]
) -> list[Head | None]:
    return [
        jax.device_get(head_of(image, face.landmarks)) if face else None
        for image, face in zip(images, faces)
    ]


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
    heads = fit_heads(
        model,
        np.stack(images),
        np.stack([face.landmarks for face in filled]),
        np.stack([face.expression for face in filled]),
    )
    return [head if face else None for head, face in zip(heads, faces)]


def read_values(shown: Shown) -> dict[str, Any]:
    """What the metrics read in one image, see `metrics.base.Metric.reads`."""
    return {name: read(shown) for metric in METRICS for name, read in metric.reads.items()}


def _measurement(model, image, faces, head):
    landmarks = faces[0].landmarks if faces else None
    shown = Shown(image, landmarks)
    values = read_values(shown)
    if landmarks is None:
        vectors = {
            "dlib": np.full(128, np.nan, np.float32),
            "mobilefacenet": np.full(192, np.nan, np.float32),
        }
        if _arcface() is not None:
            vectors[ARCFACE] = np.full(arcface.WIDTH, np.nan, np.float32)
        return ImageMeasurement(0, HeadParams.missing(model), vectors, values)
    assert shown.recognized is not None, "there is a face"
    vectors = recognition_vectors(image, landmarks, shown.recognized[0])
    return ImageMeasurement(len(faces), HeadParams.of(model, head), vectors, values)
