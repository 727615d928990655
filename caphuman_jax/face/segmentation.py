"""Which pixel is what: a label map of nine classes from the person mask and the polygons that the
landmarks give.

The order of a label map, as painted (later over earlier): see LABELS. Ears, hair, neck and clothes
are one class.
Landmark numbering: MediaPipe's face mesh.
"""

from __future__ import annotations

import cv2
import numpy as np

from caphuman_jax.face.landmark_indices import FACE_OVAL
from caphuman_jax.face.onnx_runner import network

LABELS = (
    "background",
    "person",
    "skin",
    "nose",
    "brows",
    "eyes",
    "upper_lip",
    "lower_lip",
    "inner_mouth",
)
BACKGROUND, PERSON, SKIN, NOSE, BROWS, EYES, UPPER_LIP, LOWER_LIP, INNER_MOUTH = range(len(LABELS))

# Closed polygons, right and left being the person's own.
NOSE_OUTLINE = (168, 122, 174, 198, 49, 48, 64, 98, 97, 2, 326, 327, 294, 278, 279, 420, 399, 351)
RIGHT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
LEFT_BROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
RIGHT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
LEFT_EYE = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
_OUTER_UPPER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
_OUTER_LOWER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
_INNER_UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
_INNER_LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
UPPER_LIP_OUTLINE = _OUTER_UPPER + _INNER_UPPER[::-1]
LOWER_LIP_OUTLINE = _OUTER_LOWER + _INNER_LOWER[::-1]
INNER_MOUTH_OUTLINE = _INNER_UPPER + _INNER_LOWER[-2:0:-1]

_SIZE = 256
_SUBPIXEL_BITS = 4


def person_mask(image: np.ndarray) -> np.ndarray:
    """(H, W) float32 probability in [0, 1] that a pixel of an RGB uint8 picture (H, W, 3) shows a
    person.
    """
    height, width = image.shape[:2]
    smaller = height * width > _SIZE * _SIZE
    small = cv2.resize(
        image, (_SIZE, _SIZE), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    mask = network("person_segmentation")(small[None].astype(np.float32) / 255)[0].reshape(
        _SIZE, _SIZE
    )
    return np.clip(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)


def parse_face(
    landmarks: np.ndarray, shape: tuple[int, int], person: np.ndarray | None = None
) -> np.ndarray:
    """Label map (H, W) uint8, see LABELS, from 478 landmarks in the pixels of a picture of `shape`
    (H, W).

    `person` is what `person_mask` gives; without it everything outside the face is background.
    """
    labels = np.zeros(shape, np.uint8)
    if person is not None:
        labels[person > 0.5] = PERSON
    points = np.asarray(landmarks)[:, :2]
    # Seen from the side the oval's far edge lies behind nose and lips, so take the hull with them.
    whole = FACE_OVAL + NOSE_OUTLINE + _OUTER_UPPER + _OUTER_LOWER
    _fill(labels, cv2.convexHull(points[list(whole)].astype(np.float32))[:, 0], SKIN)
    for polygon, label in (
        (NOSE_OUTLINE, NOSE),
        (RIGHT_BROW, BROWS),
        (LEFT_BROW, BROWS),
        (RIGHT_EYE, EYES),
        (LEFT_EYE, EYES),
        (UPPER_LIP_OUTLINE, UPPER_LIP),
        (LOWER_LIP_OUTLINE, LOWER_LIP),
        (INNER_MOUTH_OUTLINE, INNER_MOUTH),
    ):
        _fill(labels, points[list(polygon)], label)
    return labels


def face_mask(labels: np.ndarray) -> np.ndarray:
    """Boolean face region (H, W) of a label map: skin, nose, brows, eyes, lips and mouth; no hair,
    ears or neck.
    """
    return labels >= SKIN


def paint_outside_white(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Copy of the picture (H, W, 3) that is white wherever the boolean mask (H, W) is not set."""
    return np.where(mask[..., None], image, np.uint8(255))


def _fill(labels, points, label):
    # cv2 counts from pixel centers, in fixed-point fractions.
    fixed = np.round((points - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(labels, [fixed], int(label), shift=_SUBPIXEL_BITS)
