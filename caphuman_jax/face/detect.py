"""BlazeFace: boxes and six key points of the faces in a picture.

Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", 2019
(short-range model)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import cv2
import numpy as np

from caphuman_jax.face.onnx_runner import network

SIZE = 128
KEY_POINTS = ("right_eye", "left_eye", "nose_tip", "mouth", "right_ear", "left_ear")
MIN_SCORE = 0.5
MIN_TILE = 96
MIN_FIRST_TILE = 192  # smaller pictures are searched in tiles only if the whole shows no face
_SURE = 0.8
_MERGE_OVERLAP = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """One face: `box` (x0, y0, x1, y1) and `keypoints` (6, 2), see KEY_POINTS, in picture pixels;
    `score` in [0, 1].
    """

    box: np.ndarray
    score: float
    keypoints: np.ndarray

    @property
    def side(self) -> float:
        """Larger side of the box in pixels."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))


def search(image: np.ndarray, min_score: float = MIN_SCORE) -> Iterator[list[Detection]]:
    """Faces of an RGB uint8 picture (H, W, 3) as found in ever smaller parts of it; each list
    largest first.

    The network sees faces from about a tenth of its square up to nearly all of it. So it looks at
    the whole picture, in large pictures together with overlapping tiles of half its size; then at
    the picture with a wide margin (for a face that fills it); then at tiles of a half, a quarter
    and an eighth, and in panoramas at ever smaller ones down to the shorter side. Whoever asks
    stops at the first list that holds what is looked for."""
    long, short = max(image.shape[:2]), min(image.shape[:2])
    found, upright = _detect_whole(image, min_score)
    large = long / 2 >= MIN_FIRST_TILE
    if large and upright:
        tiles = _detect_tiles(image, long / 2, min_score)
        found = found + [d for d in tiles if not any(_nose_within(d, known) for known in found)]
    yield _largest_first(found)
    yield _largest_first(_detect_tiles(image, 2 * long, min_score))
    divisions = [2, 4, 8]
    while long / divisions[-1] > short:
        divisions.append(2 * divisions[-1])
    for parts in divisions:
        if long / parts >= MIN_TILE and not (large and parts == 2):
            yield _largest_first(_detect_tiles(image, long / parts, min_score))


@functools.cache
def anchors() -> np.ndarray:
    """(896, 2) anchor centers (x, y) in [0, 1]: a 16x16 grid with 2 per cell, then an 8x8 grid with
    6.
    """
    parts = []
    for cells, repeats in ((16, 2), (8, 6)):
        centers = (np.arange(cells) + 0.5) / cells
        x, y = np.meshgrid(centers, centers)
        parts.append(np.repeat(np.stack([x.ravel(), y.ravel()], 1), repeats, axis=0))
    return np.concatenate(parts).astype(np.float32)


def decode(
    regressors: np.ndarray, logits: np.ndarray, min_score: float = MIN_SCORE
) -> list[Detection]:
    """Detections in units of the square's side from the network's outputs (896, 16) and (896,), not
    yet merged.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    keep = (scores >= min_score) & (regressors[:, 2:4] > 0).all(axis=1)
    r, a = regressors[keep] / SIZE, anchors()[keep]
    center, size = r[:, :2] + a, r[:, 2:4]
    boxes = np.concatenate([center - size / 2, center + size / 2], axis=1)
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
        merged.append(
            Detection(
                np.einsum("n,nk->k", weights, np.stack([d.box for d in group])),
                group[0].score,
                np.einsum("n,nkc->kc", weights, np.stack([d.keypoints for d in group])),
            )
        )
    return merged


def _overlap(box, boxes):
    """Intersection over union of one box with many."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return inner / np.maximum(areas + np.prod(box[2:] - box[:2]) - inner, 1e-12)


def _largest_first(detections):
    return sorted(detections, key=lambda d: -d.side)


def _nose_within(detection, other):
    nose = detection.keypoints[KEY_POINTS.index("nose_tip")]
    return bool((nose > other.box[:2]).all() and (nose < other.box[2:]).all())


def _detect_whole(image, min_score):
    """Faces in the whole picture, and whether they stand upright in it rather than upside down."""

    def best(detections):
        return max((d.score for d in detections), default=0)

    found = _detect_tiles(image, max(image.shape[:2]), min_score)
    if best(found) >= _SURE:
        return found, True
    # Upside down a face passes for a poor upright one: the better of the two is right.
    turned = _detect_tiles(cv2.rotate(image, cv2.ROTATE_180), max(image.shape[:2]), min_score)
    if best(turned) > best(found):
        return [_turn(d, image.shape) for d in turned], False
    return found, True


def _detect_tiles(image, side, min_score):
    """Faces, in picture pixels, in squares of `side` that overlap by half and cover the picture,
    black around it.
    """
    height, width = image.shape[:2]
    size = np.maximum(np.round(np.array([width, height]) * (SIZE / side)).astype(int), 1)
    small = cv2.resize(
        image,
        tuple(map(int, size)),
        interpolation=cv2.INTER_AREA if size.sum() < width + height else cv2.INTER_LINEAR,
    )
    before = np.maximum(SIZE - size, 0) // 2
    after = np.maximum(SIZE - size, 0) - before
    small = cv2.copyMakeBorder(small, before[1], after[1], before[0], after[0], cv2.BORDER_CONSTANT)
    scale = np.array([width, height]) / size
    found = []
    for y in _starts(small.shape[0]):
        for x in _starts(small.shape[1]):
            tile = small[y : y + SIZE, x : x + SIZE]
            regressors, logits = network("blazeface_short_range")(
                tile[None].astype(np.float32) / 127.5 - 1
            )
            for d in decode(regressors[0], logits[0, :, 0], min_score):
                if not _cut(d.box, x, y, small.shape):
                    corner = np.array([x, y]) - before
                    box = (d.box.reshape(2, 2) * SIZE + corner) * scale
                    found.append(
                        Detection(box.ravel(), d.score, (d.keypoints * SIZE + corner) * scale)
                    )
    return merge_overlapping(found)


def _starts(length):
    """First pixels of tiles that overlap by half and cover `length`."""
    return np.linspace(0, length - SIZE, -(-2 * (length - SIZE) // SIZE) + 1).astype(int)


def _cut(box, x, y, shape):
    """Does the box (in units of the tile) hang over an edge beyond which there is more picture? The
    next tile has it whole.
    """
    return (
        (box[0] < 0 and x > 0)
        or (box[1] < 0 and y > 0)
        or (box[2] > 1 and x + SIZE < shape[1])
        or (box[3] > 1 and y + SIZE < shape[0])
    )


def _turn(detection, shape):
    """A detection in a picture turned by 180 degrees, in the picture as it was."""
    corner = np.array([shape[1], shape[0]])
    box = (corner - detection.box.reshape(2, 2))[::-1].ravel()
    return Detection(box, detection.score, corner - detection.keypoints)
