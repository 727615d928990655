"""478 landmarks of a face and its 52 ARKit expression weights.

Networks of MediaPipe's face landmarker (Grishchenko et al., "Attention Mesh", 2020).
"""

from __future__ import annotations

import numpy as np

from caphuman_jax.face import align
from caphuman_jax.face.detect import Detection
from caphuman_jax.face.onnx_runner import blendshape_table, network

CROP = 256
CROP_SIDE = 1.5  # crop side over the larger box side
RIGHT_EYE_OUTER, LEFT_EYE_OUTER = 33, 263
_MAX_PASSES = 4
_SETTLED = 0.01  # mean movement of the landmarks between passes, over the face's side


def find_landmarks(image: np.ndarray, detection: Detection) -> tuple[np.ndarray, float]:
    """Landmarks (478, 3) float32 and presence in [0, 1] of a detected face in an RGB uint8 picture
    (H, W, 3).

    x, y in picture pixels; z in the same unit, smaller is nearer, 0 about the middle of the head.
    Points outside the picture are possible. A second pass takes its crop from the landmarks of the
    first; where that moves them much (strongly turned faces) up to two more follow."""
    right, left = detection.keypoints[:2]
    low, high = detection.box[:2], detection.box[2:]
    landmarks, presence = _landmarks_in_crop(
        image, (low + high) / 2, float((high - low).max()), _angle(right, left)
    )
    for _ in range(_MAX_PASSES - 1):
        before = landmarks
        angle = _angle(before[RIGHT_EYE_OUTER, :2], before[LEFT_EYE_OUTER, :2])
        center, side = _upright_box(before[:, :2], angle)
        landmarks, presence = _landmarks_in_crop(image, center, side, angle)
        if np.linalg.norm((landmarks - before)[:, :2], axis=1).mean() < _SETTLED * side:
            break
    return landmarks, presence


def expression_names() -> tuple[str, ...]:
    """The 52 ARKit names, in the order of `expression_weights`."""
    return blendshape_table()[1]


def expression_weights(landmarks: np.ndarray) -> np.ndarray:
    """(52,) float32 ARKit expression weights in [0, 1] of landmarks (478, 2 or 3) in picture
    pixels.

    The network does not mind scale and place, but it does roll, so the eyes are made level first.
    """
    indices, _ = blendshape_table()
    xy = np.asarray(landmarks)[:, :2]
    level = xy @ _turned_axes(_angle(xy[RIGHT_EYE_OUTER], xy[LEFT_EYE_OUTER])).T
    return network("face_blendshapes_52")(level[None, indices])[0].reshape(52)


def _landmarks_in_crop(image, center, side, angle):
    matrix = align.crop_transform(center, CROP_SIDE * side, angle, CROP)
    crop = align.warp(image, matrix, CROP, border="repeat")
    points, logit = network("face_landmarks_478")(crop[None].astype(np.float32) / 255)[:2]
    points = points.reshape(478, 3).astype(np.float64)
    xy = align.apply(align.invert(matrix), points[:, :2])
    z = points[:, 2:] * (CROP_SIDE * side / CROP)
    presence = 1 / (1 + np.exp(-np.clip(float(logit.ravel()[0]), -80, 80)))
    return np.concatenate([xy, z], axis=1).astype(np.float32), float(presence)


def _angle(right_eye, left_eye):
    dx, dy = np.asarray(left_eye) - np.asarray(right_eye)
    return float(np.arctan2(dy, dx))


def _turned_axes(angle):
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _upright_box(points, angle):
    """Center (in the picture) and larger side of the points' bounding box along the turned axes."""
    axes = _turned_axes(angle)
    turned = points @ axes.T
    low, high = turned.min(0), turned.max(0)
    return axes.T @ ((low + high) / 2), float((high - low).max())
