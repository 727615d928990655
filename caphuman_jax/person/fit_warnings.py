"""Reasons why a head that was fitted to a photo may be wrong.

The landmark network guesses what it cannot see, so a head that fits its landmarks well
(`Head.confidence`) may still be a guess. The photo itself says more.

The thresholds were set on 437 old and new portraits; docs/notes/heads.md says how many each one
names.
"""

from __future__ import annotations

import cv2
import numpy as np

from caphuman_jax.face import attributes, segmentation
from caphuman_jax.face.face import Face
from caphuman_jax.head.head import POOR_FIT, Head

POOR_PRESENCE = 0.95
_OUTSIDE, _PROFILE, _SMALL = 0.05, 60.0, 40
# Brightness of the brighter eye, over that of the cheeks: portraits have 0.33 and more. The
# limit is higher under glasses.
_DARK_EYES, _DARK_GLASSES, _DARK_FACE = 0.3, 0.5, 25
_CHEEKS = (50, 280, 205, 425, 101, 330, 4, 195, 118, 347)


def fit_warnings(
    head: Head,
    face: Face,
    photo_size: tuple[int, int],
    square: np.ndarray,
    landmarks: np.ndarray,
    features: np.ndarray,
) -> list[str]:
    """Reasons, each a few words for the user, why the head of a measured face may be wrong.

    Args:
        head: the fitted head.
        face: in the photo's pixels.
        photo_size: (height, width).
        square: (S, S, 3) uint8 around the head.
        landmarks: (478, 3) in the square's pixels.
        features: (49, 512) of the shipped recognizer.

    Returns:
        The reasons; [] if there are none.
    """
    found, confidence = [], float(head.confidence)
    if confidence < POOR_FIT:
        found.append(f"the head fits the landmarks poorly (confidence {confidence:.2f})")
    if face.presence < POOR_PRESENCE:
        found.append(
            "this may not be a face, or one too hidden or too much from the side (presence "
            f"{face.presence:.2f})"
        )
    outside = outside_share(face.landmarks, photo_size)
    if outside > _OUTSIDE:
        found.append(
            f"about {100 * outside:.0f} % of the face lies outside the photo and is guessed"
        )
    yaw = float(np.asarray(head.angles)[0])
    if abs(yaw) > _PROFILE:
        found.append(f"the face is turned by {abs(yaw):.0f}°: its far side is guessed")
    if face.size < _SMALL:
        found.append(f"the face is only {face.size:.0f} pixels wide")
    return found + _by_pixels(square, landmarks, features, whole=outside <= _OUTSIDE)


def outside_share(landmarks: np.ndarray, size: tuple[int, int]) -> float:
    """Part in [0, 1] of the area within landmarks (N, 2 or more) that lies outside a photo of size
    (height, width).
    """
    hull = cv2.convexHull(np.ascontiguousarray(np.asarray(landmarks, np.float32)[:, :2]))
    height, width = size
    photo = np.asarray([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    inside, _ = cv2.intersectConvexConvex(hull, photo)
    return float(np.clip(1 - inside / max(cv2.contourArea(hull), 1e-6), 0, 1))


def _by_pixels(
    square: np.ndarray, landmarks: np.ndarray, features: np.ndarray, whole: bool
) -> list[str]:
    """Covered eyes, a drawing, darkness, as the square around the head shows them."""
    grey = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY).astype(np.float32)
    at = np.clip(landmarks[list(_CHEEKS), :2].astype(int), 0, len(grey) - 1)
    cheeks = float(np.median(grey[at[:, 1], at[:, 0]]))
    worn = dict(zip(attributes.names(), attributes.scores(features[None])[0]))
    if cheeks < _DARK_FACE:
        return ["the face is very dark: its colors and light are guessed"]
    found = []
    eyes = (
        max(
            _brightness(grey, landmarks[list(eye), :2])
            for eye in (segmentation.RIGHT_EYE, segmentation.LEFT_EYE)
        )
        / cheeks
    )
    if eyes < _DARK_EYES or (eyes < _DARK_GLASSES and worn["glasses"] > 0):
        found.append("the eyes are hidden, by sunglasses or a bar: eyes and brows are guessed")
    if whole and worn["drawing"] > attributes.DRAWING_SCORE:
        found.append(
            "this may be a drawing, a painting or a very noisy photo: colors, light and shape "
            "follow its style"
        )
    return found


def _brightness(grey: np.ndarray, eye: np.ndarray) -> float:
    """85th percentile of an eye and its lids."""
    center = eye.mean(axis=0)
    mask = np.zeros(grey.shape, np.uint8)
    cv2.fillConvexPoly(
        mask,
        cv2.convexHull((center + (eye - center) * [1.15, 1.6]).astype(np.float32)).astype(np.int32),
        1,
    )
    return float(np.percentile(grey[mask > 0], 85)) if mask.any() else float(np.median(grey))
