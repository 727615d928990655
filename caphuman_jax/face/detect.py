"""BlazeFace: boxes and six key points of the faces in a picture.

Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", 2019 (short-range model).
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np

from caphuman_jax.face.networks import network

SIZE = 128
KEY_POINTS = ("right_eye", "left_eye", "nose_tip", "mouth", "right_ear", "left_ear")
MIN_SCORE = 0.5
MIN_FACE = 24
_MERGE_OVERLAP = 0.3


@dataclasses.dataclass(frozen=True)
class Detection:
    """One face: `box` (x0, y0, x1, y1) and `keypoints` (6, 2), see KEY_POINTS, in picture pixels; `score` in [0, 1]."""

    box: np.ndarray
    score: float
    keypoints: np.ndarray

    @property
    def side(self) -> float:
        """Larger side of the box in pixels."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))


def detect_faces(image: np.ndarray, min_score: float = MIN_SCORE) -> list[Detection]:
    """Faces of an RGB uint8 picture (H, W, 3), largest first.

    The network sees faces from about a tenth of its square up to nearly all of it. So it looks at the whole picture,
    then at the picture with a wide margin (for a face that fills it), then at ever smaller overlapping tiles,
    and stops at the first of these that shows a face.
    """
    height, width = image.shape[:2]
    long = max(height, width)
    levels = [[_centred(height, width, long)], [_centred(height, width, 2 * long)]]
    tile = long / 2
    while tile >= 8 * MIN_FACE:
        levels.append(_tiles(height, width, tile))
        tile /= 2
    for squares in levels:
        found = [d for square in squares for d in _detect_square(image, square, min_score)]
        if found:
            return sorted(merge_overlapping(found), key=lambda d: -d.side)
    return []


@functools.cache
def anchors() -> np.ndarray:
    """(896, 2) anchor centres (x, y) in [0, 1]: a 16x16 grid with 2 per cell, then an 8x8 grid with 6."""
    parts = []
    for cells, repeats in ((16, 2), (8, 6)):
        centres = (np.arange(cells) + 0.5) / cells
        x, y = np.meshgrid(centres, centres)
        parts.append(np.repeat(np.stack([x.ravel(), y.ravel()], 1), repeats, axis=0))
    return np.concatenate(parts).astype(np.float32)


def decode(regressors: np.ndarray, logits: np.ndarray, min_score: float = MIN_SCORE) -> list[Detection]:
    """Detections in units of the square's side from the network's outputs (896, 16) and (896,), not yet merged."""
    scores = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    keep = scores >= min_score
    r, a = regressors[keep] / SIZE, anchors()[keep]
    centre, size = r[:, :2] + a, r[:, 2:4]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    keypoints = r[:, 4:].reshape(-1, 6, 2) + a[:, None]
    return [Detection(b, float(s), k) for b, s, k in zip(boxes, scores[keep], keypoints)]


def merge_overlapping(detections: list[Detection]) -> list[Detection]:
    """Replace detections whose boxes overlap by their score-weighted mean, the best score kept."""
    rest = sorted(detections, key=lambda d: -d.score)
    merged = []
    while rest:
        overlap = _overlap(rest[0].box, np.stack([d.box for d in rest]))
        group = [d for d, o in zip(rest, overlap) if o > _MERGE_OVERLAP or d is rest[0]]
        rest = [d for d, o in zip(rest[1:], overlap[1:]) if o <= _MERGE_OVERLAP]
        weights = np.array([d.score for d in group])
        weights /= weights.sum()
        merged.append(Detection(
            np.einsum("n,nk->k", weights, np.stack([d.box for d in group])), group[0].score,
            np.einsum("n,nkc->kc", weights, np.stack([d.keypoints for d in group]))))
    return merged


def _overlap(box, boxes):
    """Intersection over union of one box with many."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return inner / np.maximum(areas + np.prod(box[2:] - box[:2]) - inner, 1e-12)


def _centred(height, width, side):
    return (width - side) / 2, (height - side) / 2, side


def _tiles(height, width, side):
    """Squares of `side` that overlap by at least half and cover the picture."""
    def starts(length):
        if length <= side:
            return [(length - side) / 2]
        return np.linspace(0, length - side, int(np.ceil((length - side) / (side / 2))) + 1)
    return [(x, y, side) for y in starts(height) for x in starts(width)]


def _detect_square(image, square, min_score):
    """Faces in one square (x, y, side) of the picture, black where it hangs over, in picture pixels."""
    x, y, side = (int(round(v)) for v in square)
    height, width = image.shape[:2]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    padded = cv2.copyMakeBorder(
        image[top:bottom, left:right], top - y, y + side - bottom, left - x, x + side - right, cv2.BORDER_CONSTANT)
    small = cv2.resize(padded, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    regressors, logits = network("blazeface_short_range")(small[None].astype(np.float32) / 127.5 - 1)
    corner = np.array([x, y], np.float64)
    found = []
    for d in merge_overlapping(decode(regressors[0], logits[0, :, 0], min_score)):
        box = d.box.astype(np.float64) * side + np.tile(corner, 2)
        cut = ((box[0] < left and left > 0) or (box[1] < top and top > 0)
               or (box[2] > right and right < width) or (box[3] > bottom and bottom < height))
        if not cut:  # a face over a tile's edge is seen whole by the next tile
            found.append(Detection(box, d.score, d.keypoints * side + corner))
    return found
