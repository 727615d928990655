"""What speaks against the head that was fitted to a photo. The landmark network guesses what it
cannot see, so a fit that is close to its landmarks (`Head.confidence`) may still be a guess: here
is looked at the photo.

Thresholds were set on 437 old and new portraits; how many of them they name is in docs/heads.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from caphuman_jax.face import attributes, recognition, segmentation

if TYPE_CHECKING:
    from caphuman_jax.person.person import Person

POOR_FIT, POOR_PRESENCE = 0.7, 0.95
_OUTSIDE, _PROFILE, _SMALL = 0.05, 60.0, 40
# Brightness of the brighter eye, over that of the cheeks: portraits have 0.33 and more; under
# glasses less is needed.
_DARK_EYES, _DARK_GLASSES, _DARK_FACE = 0.3, 0.5, 25
_DRAWN = 1.5
_CHEEKS = (50, 280, 205, 425, 101, 330, 4, 195, 118, 347)


def doubts(person: Person) -> list[str]:
    """Reasons, each a few words for the person at the keyboard, why the head of a measured face may
    be wrong; [] if there is none.
    """
    found = []
    if person.confidence < POOR_FIT:
        found.append(f"the head fits the landmarks poorly (confidence {person.confidence:.2f})")
    if person.face.presence < POOR_PRESENCE:
        found.append(
            f"this may be no face, or one too hidden or too much from the side (presence "
            f"{person.face.presence:.2f})"
        )
    outside = outside_share(person.face.landmarks, person.photo_size)
    if outside > _OUTSIDE:
        found.append(
            f"about {100 * outside:.0f} % of the face lies outside the photo and is guessed"
        )
    yaw = float(person.head.angles[0])
    if abs(yaw) > _PROFILE:
        found.append(f"the face is turned by {abs(yaw):.0f}°: its far side is guessed")
    if person.face.size < _SMALL:
        found.append(f"the face is only {person.face.size:.0f} pixels wide")
    return found + _by_pixels(person, whole=outside <= _OUTSIDE)


def outside_share(landmarks: np.ndarray, size: tuple[int, int]) -> float:
    """Part in [0, 1] of the area within landmarks (N, 2 or more) that lies outside a photo of size
    (height, width).
    """
    hull = cv2.convexHull(np.ascontiguousarray(np.asarray(landmarks, np.float32)[:, :2]))
    height, width = size
    photo = np.asarray([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    inside, _ = cv2.intersectConvexConvex(hull, photo)
    return float(np.clip(1 - inside / max(cv2.contourArea(hull), 1e-6), 0, 1))


def _by_pixels(person: Person, whole: bool) -> list[str]:
    """Covered eyes, a drawing, darkness, as the square around the head shows them."""
    grey = cv2.cvtColor(person.square, cv2.COLOR_RGB2GRAY).astype(np.float32)
    at = np.clip(person.landmarks[list(_CHEEKS), :2].astype(int), 0, len(grey) - 1)
    cheeks = float(np.median(grey[at[:, 1], at[:, 0]]))
    features = recognition.identity(person.square, person.landmarks)[1]
    worn = dict(zip(attributes.names(), attributes.scores(features[None])[0]))
    if cheeks < _DARK_FACE:
        return ["the face is very dark: its colors and light are guessed"]
    found = []
    eyes = (
        max(
            _brightness(grey, person.landmarks[list(eye), :2])
            for eye in (segmentation.RIGHT_EYE, segmentation.LEFT_EYE)
        )
        / cheeks
    )
    if eyes < _DARK_EYES or (eyes < _DARK_GLASSES and worn["glasses"] > 0):
        found.append("the eyes are hidden, by sunglasses or a bar: eyes and brows are guessed")
    if whole and worn["drawing"] > _DRAWN:
        found.append(
            "this looks like a drawing, a painting or a very noisy photo: colors, light and shape "
            "are its style's"
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
