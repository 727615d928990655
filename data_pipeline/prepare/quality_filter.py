"""Is a photo good enough to learn from? The measures that `settings.Gate` sets limits to, and the
reasons for which photos are dropped.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from caphuman_jax.face import align
from caphuman_jax.face.crop import HEAD_SQUARE, head_square
from caphuman_jax.person.fit_warnings import outside_share
from data_pipeline.prepare.settings import PrepareSettings

REASONS = {
    "unreadable": "cannot be read as a picture",
    "no_face": "shows no face",
    "several_faces": "shows several faces",
    "small": "the face has too few pixels",
    "cut_off": "part of the face lies outside of the photo",
    "tight": "the photo ends close round the face",
    "blurred": "the face is out of focus or blurred",
    "presence": "hardly a face, or hidden",
    "drawing": "looks like a drawing or a painting",
    "no_head": "no head fits the landmarks",
    "pose": "turned or tilted too far",
    "duplicate": "the same picture as another",
    "error": "could not be measured",
}
"""What the codes of dropped photos mean. Duplicates are found when all photos are known."""

_FACE = 128  # pixels across the face at which blur is judged


def sharpness(photo: np.ndarray, landmarks: np.ndarray) -> float:
    """How sharp the face with these landmarks (478, 2 or more) is in a photo (H, W, 3) uint8: the
    deviation of its Laplacian over its own.

    Taken from the photo with the face shrunk to 128 pixels (never enlarged), so that neither the
    photo's resolution nor the size that is stored counts. On 66 portraits 0.16 and more, in the
    middle 0.49; blurred by 1 % of the face's height 0.08 to 0.22, by 2 % 0.04 to 0.13."""
    center, side = head_square(landmarks, 1.0)
    size = max(16, round(min(_FACE, side)))
    low = np.clip(center - 0.8 * side, 0, photo.shape[1::-1]).astype(int)
    part = photo[low[1] : int(center[1] + 0.8 * side) + 2, low[0] : int(center[0] + 0.8 * side) + 2]
    if not part.size:
        return 0.0
    if side > size:  # what is too fine to be seen when it is shrunk
        part = cv2.GaussianBlur(part, (0, 0), max(0.1, 0.5 * math.sqrt((side / size) ** 2 - 1)))
    face = align.warp(
        part, align.crop_transform(center - low, side, 0.0, size), size, border="repeat"
    )
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(grey, cv2.CV_32F).std() / max(grey.std(), 1.0))


def difference_hash(square: np.ndarray) -> int:
    """64 bits of a picture (S, S, 3) uint8: is each of 8 × 8 places darker than its right
    neighbor? Like pictures differ in few bits.
    """
    small = cv2.resize(
        cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA
    ).astype(np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def by_landmarks(
    settings: PrepareSettings, landmarks: np.ndarray, presence: float, photo_size: tuple[int, int]
) -> tuple[str, str] | None:
    """Reason and detail for which a face with landmarks (478, 3) in the pixels of a photo of
    (height, width) is dropped, or None.
    """
    gate, pixels = settings.gate, face_pixels(landmarks)
    if presence < gate.min_presence:
        return "presence", f"{presence:.2f}, at least {gate.min_presence:g} is asked for"
    if pixels < settings.min_face:
        return "small", f"{pixels:.0f} pixels, at least {settings.min_face:g} are asked for"
    outside = outside_share(landmarks, photo_size)
    if outside > gate.max_outside:
        return "cut_off", f"{outside:.0%} outside, at most {gate.max_outside:.0%} is allowed"
    return None


def by_covered(settings: PrepareSettings, covered: np.ndarray) -> tuple[str, str] | None:
    """Reason and detail from the part (4,), x0, y0, x1, y1 in pixels of the stored square, that the
    photo covers, or None.
    """
    edge = (settings.stored - settings.size) / 2
    left, top, right, bottom = np.clip(covered - edge, 0, settings.size)
    share = (right - left) * (bottom - top) / settings.size**2
    if share < settings.gate.min_covered:
        return (
            "tight",
            f"the photo covers {share:.0%} of the square round the head, at least "
            f"{settings.gate.min_covered:.0%} is asked for",
        )
    return None


def by_sharpness(settings: PrepareSettings, sharp: float) -> tuple[str, str] | None:
    """Reason and detail from `sharpness`, or None."""
    if sharp < settings.gate.min_sharpness:
        return (
            "blurred",
            f"sharpness {sharp:.3f}, at least {settings.gate.min_sharpness:g} is asked for",
        )
    return None


def by_drawing(settings: PrepareSettings, score: float) -> tuple[str, str] | None:
    """Reason and detail from the score of the probe for drawings (see face.attributes), or None."""
    if settings.gate.drawings == "drop" and score > settings.gate.drawing_score:
        return "drawing", f"score {score:.1f}, at most {settings.gate.drawing_score:g} is allowed"
    return None


def by_head(
    settings: PrepareSettings, angles: np.ndarray, confidence: float
) -> tuple[str, str] | None:
    """Reason and detail from yaw, pitch, roll (3,) in degrees and the confidence of the fitted
    head, or None.
    """
    gate = settings.gate
    if not (np.all(np.isfinite(angles)) and confidence >= gate.min_confidence):
        return (
            "no_head",
            f"confidence {confidence:.2f}, at least {gate.min_confidence:g} is asked for",
        )
    for name, angle, limit in zip(
        ("yaw", "pitch", "roll"), angles, (gate.max_yaw, gate.max_pitch, gate.max_roll)
    ):
        if abs(angle) > limit:
            return "pose", f"{name} {angle:.0f}°, at most {limit:g}° is allowed"
    return None


def face_pixels(landmarks: np.ndarray) -> float:
    """Larger side of the landmarks' upright box."""
    return head_square(landmarks, HEAD_SQUARE)[1] / HEAD_SQUARE
