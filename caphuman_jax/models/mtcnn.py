"""MTCNN (Zhang et al. 2016, arXiv 1604.02878): the detector whose boxes FaceNet's crops are cut by.

Three small networks look at ever fewer and larger windows. The networks, names and settings are
facenet-pytorch's, whose
package holds the weights: pnet.pt, rnet.pt, onet.pt. Boxes are (x0, y0, x1, y1) in pixels of the
picture. The pyramid's pictures differ in size, and each size is compiled once: pictures of one
size, as the squares round a face are, are quick."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import broadcast_to_rank
from PIL import Image

from caphuman_jax.errors import PhotoError
from caphuman_jax.models.facenet import SIZE
from caphuman_jax.models.network import Network
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.initializers import lecun_normal
from caphuman_jax.nn.layers import linear
from caphuman_jax.nn.typing import Rngs

THRESHOLDS = (0.6, 0.7, 0.7)  # of the three networks' probabilities
MIN_FACE = 20  # pixels
_FACTOR = 0.709  # from one picture of the pyramid to the next
_WINDOW, _STRIDE = 12, 2  # of the first network
_BATCHES = (16, 64, 256, 1024)  # windows are filled up to one of these numbers


class PReLU(nnx.Module):
    """x where positive, else x times a weight for each channel (arXiv 1502.01852)."""

    def __init__(self, channels: int):
        self.weight = nnx.Param(jnp.full((channels,), 0.25, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., channels) → the same."""
        return jnp.maximum(x, 0) + broadcast_to_rank(self.weight[...], x.ndim) * jnp.minimum(x, 0)


class ProposalNet(nnx.Module):
    """P-Net: every 12×12 window of a picture, two pixels apart."""

    def __init__(self, *, rngs: Rngs):
        self.conv1, self.prelu1 = _conv(3, 10, 3, rngs), PReLU(10)
        self.conv2, self.prelu2 = _conv(10, 16, 3, rngs), PReLU(16)
        self.conv3, self.prelu3 = _conv(16, 32, 3, rngs), PReLU(32)
        self.conv4_1, self.conv4_2 = _conv(32, 2, 1, rngs), _conv(32, 4, 1, rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, H, W, 3) of `_normalize` → probability of a face (B, h, w), box corrections (B, h, w,
        4).
        """
        x = _pool(self.prelu1(self.conv1(x)), 2)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return jax.nn.softmax(self.conv4_1(x))[..., 1], self.conv4_2(x)


class RefinementNet(nnx.Module):
    """R-Net, on windows of 24×24."""

    def __init__(self, *, rngs: Rngs):
        self.conv1, self.prelu1 = _conv(3, 28, 3, rngs), PReLU(28)
        self.conv2, self.prelu2 = _conv(28, 48, 3, rngs), PReLU(48)
        self.conv3, self.prelu3 = _conv(48, 64, 2, rngs), PReLU(64)
        self.dense4, self.prelu4 = linear(576, 128, compute=ComputeConfig(), rngs=rngs), PReLU(128)
        self.dense5_1, self.dense5_2 = (
            linear(128, n, compute=ComputeConfig(), rngs=rngs) for n in (2, 4)
        )

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(N, 24, 24, 3) of `_normalize` → probability (N,), box corrections (N, 4)."""
        x = _pool(self.prelu1(self.conv1(x)), 3)
        x = _pool(self.prelu2(self.conv2(x)), 3)
        x = self.prelu4(self.dense4(_flat(self.prelu3(self.conv3(x)))))
        return jax.nn.softmax(self.dense5_1(x))[:, 1], self.dense5_2(x)


class OutputNet(nnx.Module):
    """O-Net, on windows of 48×48."""

    def __init__(self, *, rngs: Rngs):
        self.conv1, self.prelu1 = _conv(3, 32, 3, rngs), PReLU(32)
        self.conv2, self.prelu2 = _conv(32, 64, 3, rngs), PReLU(64)
        self.conv3, self.prelu3 = _conv(64, 64, 3, rngs), PReLU(64)
        self.conv4, self.prelu4 = _conv(64, 128, 2, rngs), PReLU(128)
        self.dense5, self.prelu5 = linear(1152, 256, compute=ComputeConfig(), rngs=rngs), PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = (
            linear(256, n, compute=ComputeConfig(), rngs=rngs) for n in (2, 4, 10)
        )

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(N, 48, 48, 3) of `_normalize` → probability (N,), box corrections (N, 4), five points
        (N, 10): all x, then all y.
        """
        x = _pool(self.prelu1(self.conv1(x)), 3)
        x = _pool(self.prelu2(self.conv2(x)), 3)
        x = _pool(self.prelu3(self.conv3(x)), 2)
        x = self.prelu5(self.dense5(_flat(self.prelu4(self.conv4(x)))))
        return jax.nn.softmax(self.dense6_1(x))[:, 1], self.dense6_2(x), self.dense6_3(x)


Networks = tuple[Network, Network, Network]


def detect(
    networks: Networks,
    image: np.ndarray,
    min_face: float = MIN_FACE,
    thresholds: tuple[float, float, float] = THRESHOLDS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces of a picture (H, W, 3) uint8 RGB, largest first: boxes (N, 4), probabilities (N,), and
    points (N, 5, 2): eyes, nose, corners of the mouth. min_face: pixels, below which none is looked
    for. Raises PhotoError if the picture is not that.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise PhotoError(
            f"MTCNN takes a picture of height × width × 3 of 8 bits, not {image.shape} of "
            f"{image.dtype}"
        )
    picture = image.astype(np.float32)
    boxes = _square(_proposals(networks[0], picture, min_face, thresholds[0]))

    windows, boxes = _windows(picture, boxes, 24)
    scores, corrections = _in_batches(networks[1], windows)
    kept = np.flatnonzero(scores > thresholds[1])
    kept = kept[suppress(boxes[kept], scores[kept], 0.7)]
    boxes = _square(_corrected(boxes[kept], corrections[kept]))

    windows, boxes = _windows(picture, boxes, 48)
    scores, corrections, points = _in_batches(networks[2], windows)
    kept = np.flatnonzero(scores > thresholds[2])
    boxes, scores, corrections, points = (
        boxes[kept],
        scores[kept],
        corrections[kept],
        points[kept].reshape(-1, 2, 5),
    )
    points = points * (boxes[:, 2:] - boxes[:, :2] + 1)[..., None] + boxes[:, :2, None] - 1
    boxes = _corrected(boxes, corrections)
    kept = suppress(boxes, scores, 0.7, smaller=True)
    kept = kept[np.argsort(-np.prod(boxes[kept, 2:] - boxes[kept, :2], axis=1), kind="stable")]
    return boxes[kept], scores[kept], points[kept].transpose(0, 2, 1)


def face_crop(networks: Networks, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
    """What FaceNet was trained on, (160, 160, 3) uint8: MTCNN's box of the face with these
    landmarks (N, 2 or more), stretched to a square. None where MTCNN does not see that face.
    """
    points = np.asarray(landmarks)[:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    # The same pyramid without the pictures for smaller faces: fewer programs to compile, and no
    # other face to be taken for this.
    steps = np.floor(np.log(max(0.5 * float((high - low).min()) / MIN_FACE, 1)) / -np.log(_FACTOR))
    boxes, _, _ = detect(networks, image, MIN_FACE / _FACTOR**steps)
    known = np.concatenate([low, high])[None]
    overlap = [_overlap(known, box[None])[0, 0] for box in boxes]
    if not overlap or max(overlap) < 0.3:
        return None
    return crop(image, boxes[int(np.argmax(overlap))])


def crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A box (4,), cut down to whole pixels within the picture, stretched to (160, 160, 3) uint8
    bilinearly.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (int(value) for value in np.clip(box, 0, [width, height, width, height]))
    if x1 <= x0 or y1 <= y0:
        raise PhotoError("the face lies outside of the picture")
    return np.asarray(
        Image.fromarray(image)
        .crop((x0, y0, x1, y1))
        .resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    )


def suppress(
    boxes: np.ndarray, scores: np.ndarray, threshold: float, *, smaller: bool = False
) -> np.ndarray:
    """Numbers (K,) of the boxes that remain, best first, when each drops those that overlap it by
    more than the threshold.

    The overlap is the part of the union; with `smaller`, the part of the smaller box, sides counted
    in whole pixels."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[_overlap(boxes[best : best + 1], boxes[order], smaller)[0] <= threshold]
    return np.asarray(kept, np.int64)


def area_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, C) float32 → (height, width, C): every new pixel is the mean of those that
    it touches.
    """
    for axis, size in ((0, height), (1, width)):
        old = image.shape[axis]
        starts, ends = np.arange(size) * old // size, -(-(np.arange(size) + 1) * old // size)
        total = np.concatenate(
            [
                np.zeros_like(image.take([0], axis), np.float64),
                np.cumsum(image, axis, dtype=np.float64),
            ],
            axis,
        )
        count = (ends - starts).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = ((total.take(ends, axis) - total.take(starts, axis)) / count).astype(np.float32)
    return image


def _proposals(
    network: Network, picture: np.ndarray, min_face: float, threshold: float
) -> np.ndarray:
    """Boxes (N, 4) of the first network over the pyramid."""
    height, width = picture.shape[:2]
    scale = _WINDOW / min_face
    found = [np.zeros((0, 9), np.float32)]
    while min(height, width) * scale >= _WINDOW:
        small = _normalize(area_resize(picture, int(height * scale + 1), int(width * scale + 1)))
        scores, corrections = (np.asarray(part)[0] for part in _run(*network, small[None]))
        rows, columns = np.nonzero(scores >= threshold)
        corner = np.stack([columns, rows], axis=-1).astype(np.float32) * _STRIDE
        boxes = np.floor(
            np.concatenate([corner + 1, corner + _WINDOW], axis=-1) / np.float32(scale)
        )
        scores = scores[rows, columns]
        kept = suppress(boxes, scores, 0.5)
        found.append(
            np.concatenate([boxes, scores[:, None], corrections[rows, columns]], axis=-1)[kept]
        )
        scale *= _FACTOR
    found = np.concatenate(found)
    found = found[suppress(found[:, :4], found[:, 4], 0.7)]
    size = found[:, 2:4] - found[:, :2]
    return found[:, :4] + found[:, 5:] * np.tile(size, 2)


def _windows(picture: np.ndarray, boxes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture in each box, cut off at its edge, as (N, size, size, 3); and the boxes that lie
    in it at all.
    """
    height, width = picture.shape[:2]
    whole = np.trunc(boxes).astype(np.int64)
    starts, ends = np.maximum(whole[:, :2], 1) - 1, np.minimum(whole[:, 2:], [width, height])
    inside = (ends > starts).all(axis=1)
    windows = [
        area_resize(picture[y0:y1, x0:x1], size, size)
        for (x0, y0), (x1, y1) in zip(starts[inside], ends[inside])
    ]
    return _normalize(
        np.stack(windows) if windows else np.zeros((0, size, size, 3), np.float32)
    ), boxes[inside]


def _in_batches(network: Network, windows: np.ndarray) -> list[np.ndarray]:
    count = len(windows)
    parts = []
    for begin in range(0, max(count, 1), _BATCHES[-1]):
        part = windows[begin : begin + _BATCHES[-1]]
        size = next(n for n in _BATCHES if n >= len(part))
        filled = np.concatenate(
            [part, np.zeros((size - len(part), *windows.shape[1:]), np.float32)]
        )
        parts.append([np.asarray(output)[: len(part)] for output in _run(*network, filled)])
    return [np.concatenate(outputs) for outputs in zip(*parts)]


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef: nnx.GraphDef, params: dict, x: jax.Array):
    with jax.default_matmul_precision("highest"):
        return nnx.merge(graphdef, params)(x)


def _normalize(x: np.ndarray) -> np.ndarray:
    return (x - np.float32(127.5)) * np.float32(0.0078125)


def _corrected(boxes: np.ndarray, corrections: np.ndarray) -> np.ndarray:
    return boxes + corrections * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def _square(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) grown to squares about their centers."""
    size = boxes[:, 2:] - boxes[:, :2]
    side = size.max(axis=1, keepdims=True)
    corner = boxes[:, :2] + size / 2 - side / 2
    return np.concatenate([corner, corner + side], axis=1)


def _overlap(a: np.ndarray, b: np.ndarray, smaller: bool = False) -> np.ndarray:
    """(N, M) overlap of boxes (N, 4) and (M, 4); see `suppress`."""
    more = 1 if smaller else 0
    area = lambda boxes: np.prod(boxes[:, 2:] - boxes[:, :2] + more, axis=1)
    low, high = (
        np.maximum(a[:, None, :2], b[None, :, :2]),
        np.minimum(a[:, None, 2:], b[None, :, 2:]),
    )
    shared = np.prod(np.maximum(high - low + more, 0), axis=-1)
    whole = (
        np.minimum(area(a)[:, None], area(b)) if smaller else area(a)[:, None] + area(b) - shared
    )
    return shared / np.maximum(whole, 1e-9)


def _conv(inputs: int, outputs: int, size: int, rngs: Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        kernel_size=(size, size),
        padding="VALID",
        kernel_init=lecun_normal,
        rngs=rngs,
    )


def _pool(x: jax.Array, size: int) -> jax.Array:
    """Largest of size × size at stride 2; the last window may reach over the edge."""
    reach = [max(0, -(-(n - size) // 2) * 2 + size - n) for n in x.shape[1:3]]
    return nnx.max_pool(x, (size, size), strides=(2, 2), padding=tuple((0, more) for more in reach))


def _flat(x: jax.Array) -> jax.Array:
    """(N, H, W, C) → (N, W·H·C), as the dense layers' weights want it."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], -1)
