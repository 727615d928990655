"""A photo's faces: found, ordered, chosen."""

from __future__ import annotations

import dataclasses

import numpy as np

from caphuman_jax.face.detect import MIN_SCORE, search
from caphuman_jax.face.landmarks import expression_names, expression_weights, find_landmarks

MIN_PRESENCE = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """One face in a photo; every coordinate in that photo's pixels, x to the right, y down.

    box: (4,) x0, y0, x1, y1. score: of the detector, [0, 1]. keypoints: (6, 2), see detect.KEY_POINTS.
    landmarks: (478, 3) float32, z in pixels too, smaller is nearer. presence: that the landmarks lie on a face, [0, 1].
    expression: (52,) float32 ARKit weights in [0, 1], named by `expression_names`.
    """

    box: np.ndarray
    score: float
    keypoints: np.ndarray
    landmarks: np.ndarray
    presence: float
    expression: np.ndarray

    @property
    def size(self) -> float:
        """Larger side of the box in pixels."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    @property
    def expressions(self) -> dict[str, float]:
        """ARKit name to weight."""
        return dict(zip(expression_names(), map(float, self.expression)))


def find_faces(image: np.ndarray, min_score: float = MIN_SCORE, min_presence: float = MIN_PRESENCE) -> list[Face]:
    """Faces of an RGB uint8 picture (H, W, 3), largest first; empty if there is none.

    Small faces are looked for only where no larger one was found (see detect.search).
    """
    for detections in search(image, min_score):
        faces = [_look_at(image, detection) for detection in detections]
        faces = [face for face in faces if face.presence >= min_presence]
        if faces:
            return faces
    return []


def _look_at(image, detection):
    landmarks, presence = find_landmarks(image, detection)
    return Face(detection.box, detection.score, detection.keypoints, landmarks, presence, expression_weights(landmarks))
