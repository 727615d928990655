"""A photo's faces: found, ordered, chosen, and everything that is known of the chosen one."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from caphuman_jax.errors import NoFaceError, PhotoError
from caphuman_jax.face.align import NOSE_TIP
from caphuman_jax.face.detect import MIN_SCORE, search
from caphuman_jax.face.landmarks import expression_names, expression_weights, find_landmarks

_log = logging.getLogger("caphuman_jax")

MIN_PRESENCE = 0.5
_BESIDE_SURER = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """One face in a photo; every coordinate in that photo's pixels, x to the right, y down.

    box: (4,) x0, y0, x1, y1. score: of the detector, [0, 1]. keypoints: (6, 2), see
    detect.KEY_POINTS.
    landmarks: (478, 3) float32, z in pixels too, smaller is nearer. presence: that the landmarks
    lie on a face, [0, 1].
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


def find_faces(
    image: np.ndarray, min_score: float = MIN_SCORE, min_presence: float = MIN_PRESENCE
) -> list[Face]:
    """Faces of an RGB uint8 picture (H, W, 3), largest first; empty if there is none.

    Faces under about a twentieth of the picture are looked for only where no larger one was found
    (see detect.search)."""
    image = np.ascontiguousarray(image)
    for detections in search(image, min_score):
        faces = [_look_at(image, detection) for detection in detections]
        # Hands and ears pass for faces now and then, but never as surely as a face next to them.
        least = max(min_presence, _BESIDE_SURER * max((face.presence for face in faces), default=0))
        faces = _without_repeats([face for face in faces if face.presence >= least])
        if faces:
            return faces
    return []


def choose_face(faces: list[Face], index: int | None = None, photo: str = "the photo") -> Face:
    """The face of that index (0 is the largest), or the largest, with a notice where there are
    several.

    Args:
        faces: largest first.
        index: None: the largest.
        photo: names the photo in messages.

    Raises:
        NoFaceError: there is no face.
        PhotoError: there is no face of that index.
    """
    if not faces:
        raise NoFaceError(
            f"no face found in {photo}; use a photo with one clearly visible face, not too small "
            f"or turned away"
        )
    if index is None:
        if len(faces) > 1:
            _log.warning(
                "%s shows %d faces; took the largest. Choose another by its number, 0 (largest) to "
                "%d.",
                photo,
                len(faces),
                len(faces) - 1,
            )
        return faces[0]
    if not 0 <= index < len(faces):
        numbers = (
            f"the faces 0 (largest) to {len(faces) - 1}" if len(faces) > 1 else "one face, number 0"
        )
        raise PhotoError(f"there is no face {index} in {photo}; it shows {numbers}")
    return faces[index]


def _look_at(image, detection):
    landmarks, presence = find_landmarks(image, detection)
    return Face(
        detection.box,
        detection.score,
        detection.keypoints,
        landmarks,
        presence,
        expression_weights(landmarks),
    )


def _without_repeats(faces):
    """Faces, largest first, less those whose nose lies within a larger one: parts of it that were
    taken for a face.
    """
    kept = []
    for face in faces:
        nose = face.landmarks[NOSE_TIP, :2]
        if not any(
            (nose > larger.box[:2]).all() and (nose < larger.box[2:]).all() for larger in kept
        ):
            kept.append(face)
    return kept
