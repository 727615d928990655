"""Whether a photo is good enough to learn from: what `settings.QualityThresholds` sets limits to,
and the reasons for which photos are dropped."""

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
    "drawing": "taken for a drawing or a painting",
    "no_head": "no head fits the landmarks",
    "pose": "turned or tilted too far",
    "duplicate": "the same picture as another",
    "error": "could not be measured",
    "held_out_person": "shows somebody who is held out",
}
"""What the reasons in dropped.jsonl mean. Duplicates and held-out people are found last, when all
photos are measured.
"""

_FACE = 128  # pixels across the face at which blur is judged


def sharpness(photo: np.ndarray, landmarks: np.ndarray) -> float:
    """How sharp a face is: the standard deviation of its Laplacian over that of its pixels.

    The face is first shrunk to 128 pixels (never enlarged), so that neither the photo's resolution
    nor the stored size matters. On 66 portraits the least is 0.16, the median 0.49; after a blur of
    1 % of the face's height they lie in 0.08 to 0.22, of 2 % in 0.04 to 0.13.

    Args:
        photo: (H, W, 3) uint8.
        landmarks: (478, 2 or more) in its pixels.
    """
    center, side = head_square(landmarks, 1.0)
    size = max(16, round(min(_FACE, side)))
    low = np.clip(center - 0.8 * side, 0, photo.shape[1::-1]).astype(int)
    part = photo[low[1] : int(center[1] + 0.8 * side) + 2, low[0] : int(center[0] + 0.8 * side) + 2]
    if not part.size:
        return 0.0
    if side > size:  # remove what is too fine for the shrunk face
        part = cv2.GaussianBlur(part, (0, 0), max(0.1, 0.5 * math.sqrt((side / size) ** 2 - 1)))
    face = align.warp(
        part, align.crop_transform(center - low, side, 0.0, size), size, border="repeat"
    )
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(grey, cv2.CV_32F).std() / max(grey.std(), 1.0))


def difference_hash(square: np.ndarray) -> int:
    """64 bits of an image (S, S, 3) uint8: whether each of 8 × 8 cells is darker than its right
    neighbor. Similar images differ in few bits.
    """
    small = cv2.resize(
        cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA
    ).astype(np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def by_landmarks(
    settings: PrepareSettings, landmarks: np.ndarray, presence: float, photo_size: tuple[int, int]
) -> tuple[str, str] | None:
    """Judge a face by its landmarks.

    Args:
        settings: with the thresholds.
        landmarks: (478, 3) in the photo's pixels.
        presence: the landmark network's certainty of a face, in [0, 1].
        photo_size: (height, width).

    Returns:
        Reason and detail for which the photo is dropped, or None.
    """
    thresholds, pixels = settings.thresholds, face_pixels(landmarks)
    if presence < thresholds.min_presence:
        return "presence", f"{presence:.2f}, at least {thresholds.min_presence:g} is asked for"
    if pixels < settings.min_face:
        return "small", f"{pixels:.0f} pixels, at least {settings.min_face:g} are asked for"
    outside = outside_share(landmarks, photo_size)
    if outside > thresholds.max_outside:
        return "cut_off", f"{outside:.0%} outside, at most {thresholds.max_outside:.0%} is allowed"
    return None


def by_covered(settings: PrepareSettings, covered: np.ndarray) -> tuple[str, str] | None:
    """Judge a photo by the part of the stored square that it covers, `covered` (4,): x0, y0, x1, y1
    in the square's pixels. Returns reason and detail, or None.
    """
    edge = (settings.stored - settings.size) / 2
    left, top, right, bottom = np.clip(covered - edge, 0, settings.size)
    share = (right - left) * (bottom - top) / settings.size**2
    if share < settings.thresholds.min_covered:
        return (
            "tight",
            f"the photo covers {share:.0%} of the square round the head, at least "
            f"{settings.thresholds.min_covered:.0%} is asked for",
        )
    return None


def by_sharpness(settings: PrepareSettings, sharp: float) -> tuple[str, str] | None:
    """Judge a face by its `sharpness`. Returns reason and detail, or None."""
    if sharp < settings.thresholds.min_sharpness:
        return (
            "blurred",
            f"sharpness {sharp:.3f}, at least {settings.thresholds.min_sharpness:g} is asked for",
        )
    return None


def by_drawing(settings: PrepareSettings, score: float) -> tuple[str, str] | None:
    """Judge a photo by the score of the probe for drawings, see face.attributes. Returns reason and
    detail, or None.
    """
    if settings.thresholds.drawings == "drop" and score > settings.thresholds.drawing_score:
        return (
            "drawing",
            f"score {score:.1f}, at most {settings.thresholds.drawing_score:g} is allowed",
        )
    return None


def by_head(
    settings: PrepareSettings, angles: np.ndarray, confidence: float
) -> tuple[str, str] | None:
    """Judge a fitted head by its yaw, pitch and roll (3,) in degrees and its confidence in [0, 1].
    Returns reason and detail, or None.
    """
    thresholds = settings.thresholds
    if not (np.all(np.isfinite(angles)) and confidence >= thresholds.min_confidence):
        return (
            "no_head",
            f"confidence {confidence:.2f}, at least {thresholds.min_confidence:g} is asked for",
        )
    for name, angle, limit in zip(
        ("yaw", "pitch", "roll"),
        angles,
        (thresholds.max_yaw, thresholds.max_pitch, thresholds.max_roll),
    ):
        if abs(angle) > limit:
            return "pose", f"{name} {angle:.0f}°, at most {limit:g}° is allowed"
    return None


def face_pixels(landmarks: np.ndarray) -> float:
    """Larger side of the landmarks' upright box."""
    return head_square(landmarks, HEAD_SQUARE)[1] / HEAD_SQUARE
