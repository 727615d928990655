"""Face recognition vectors, and the feature map that the small model takes its local identity
tokens from.

Two networks: `mobilefacenet` (192-d; the model is conditioned on it) and `dlib` (128-d; for
measuring)."""

from __future__ import annotations

import numpy as np

from caphuman_jax.face import align
from caphuman_jax.face.onnx_runner import network

# Where the five points go: left-most eye, right-most eye, nose tip, mouth corners as seen in the
# picture.
MOBILEFACENET_SIZE = 112
MOBILEFACENET_TEMPLATE = np.array(
    [[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]]
)  # ArcFace's
DLIB_SIZE = 150
DLIB_TEMPLATE = np.array(
    [[47.11, 44.21], [100.99, 44.25], [74.46, 78.13], [49.29, 99.00], [97.70, 99.30]]
)
FEATURE_TOKENS, FEATURE_WIDTH = 49, 512


def mobilefacenet_crop(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(112, 112, 3) uint8 crop aligned to ArcFace's five points, from an RGB picture and 478
    landmarks in its pixels.
    """
    return _crop(image, landmarks, MOBILEFACENET_TEMPLATE, MOBILEFACENET_SIZE)


def dlib_crop(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(150, 150, 3) uint8 crop aligned for the dlib network, from an RGB picture and 478 landmarks
    in its pixels.
    """
    return _crop(image, landmarks, DLIB_TEMPLATE, DLIB_SIZE)


def mobilefacenet(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From aligned uint8 crops (N, 112, 112, 3): unit vectors (N, 192) and features (N, 49, 512),
    both float32.

    The features are the last 7x7 map before the global depthwise convolution, row by row; values
    about -6 … 40."""
    vectors, features = network("mobilefacenet_192")((np.asarray(crops, np.float32) - 127.5) / 128)
    return _unit(vectors), features.reshape(len(features), FEATURE_TOKENS, FEATURE_WIDTH)


def dlib(crops: np.ndarray) -> np.ndarray:
    """From aligned uint8 crops (N, 150, 150, 3): vectors (N, 128) float32, not normalized.

    Distance below 0.6 means the same person; cosines sit between 0.8 and 1.
    """
    return network("dlib_resnet_128")(np.asarray(crops, np.float32))[0]


def identity(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the small model knows a person by: the unit vector (192,) and features (49, 512) of one
    face.
    """
    vectors, features = mobilefacenet(mobilefacenet_crop(image, landmarks)[None])
    return vectors[0], features[0]


def dlib_vector(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(128,) vector of one face, see `dlib`."""
    return dlib(dlib_crop(image, landmarks)[None])[0]


def _crop(image, landmarks, template, size):
    return align.warp(
        image, align.similarity_transform(align.five_points(landmarks), template), size
    )


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
