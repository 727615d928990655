"""The part of a photo that an edit makes again, and how it goes back into the photo."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import logging
import math
from typing import Any

import cv2
import numpy as np
from PIL import Image

from caphuman_jax.face import align
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.camera import transform_head
from caphuman_jax.head.head import Head
from caphuman_jax.io.images import photo_name
from caphuman_jax.person.person import Person
from caphuman_jax.pipeline import edit_mask
from caphuman_jax.pipeline.request import EditRequest
from caphuman_jax.pipeline.rough_edit import Motion

log = logging.getLogger("caphuman_jax")

# A canvas around a painted mask is this much larger than it, so that its surroundings are seen.
_AROUND_MASK = 1.5
_SOFT = 1.5  # photo pixels per canvas pixel from where a face comes out visibly softer


@dataclasses.dataclass(frozen=True, eq=False)
class Canvas:
    """A part of a photo at the model's resolution.

    Attributes:
        photo: (H, W, 3) uint8, upright.
        place: (2, 3), photo pixels to canvas pixels: a scale and a shift.
        image: (h, w, 3) uint8, the part of the photo.
        mask: (h, w) float32 in [0, 1]: 1 where it is sampled.
        photo_mask: (H, W) float32, the mask at the photo's own resolution; None: `mask` enlarged.
        motion: of the head in it, see `rough_edit`; None: nothing moves.
        reconstruction: (h, w, 3) float32 in [0, 255], `rough` as the autoencoder encodes and
            decodes it; None: not known.
    """

    photo: np.ndarray
    place: np.ndarray
    image: np.ndarray
    mask: np.ndarray
    photo_mask: np.ndarray | None = None
    motion: Motion | None = None
    reconstruction: np.ndarray | None = None

    @property
    def enlargement(self) -> float:
        """Photo pixels per canvas pixel."""
        return 1 / float(np.sqrt(abs(np.linalg.det(self.place[:, :2]))))

    @functools.cached_property
    def rough(self) -> np.ndarray:
        """(h, w, 3) uint8: `image` after the motion, what sampling begins with."""
        if self.motion is None:
            return self.image
        return np.rint(self.motion.apply(self.image)).clip(0, 255).astype(np.uint8)

    @property
    def changed(self) -> np.ndarray:
        """(h, w) float32: `mask`, and 1 where the photo's own pixels move or change brightness."""
        moved = 0.0 if self.motion is None else self.motion.touched.astype(np.float32)
        return np.maximum(self.mask, moved)

    def to_json(self) -> dict[str, Any]:
        """Mask and place as JSON types: the mask of the canvas as a PNG file in base64."""
        document = io.BytesIO()
        Image.fromarray(np.rint(self.changed * 255).astype(np.uint8)).save(document, "PNG")
        area = base64.b64encode(document.getvalue()).decode("ascii")
        return {"area": area, "place": np.asarray(self.place).round(6).tolist()}


def create_canvas(
    photo: np.ndarray, edit: EditRequest, size: tuple[int, int], shown: Person | None
) -> Canvas:
    """The canvas of an edit; where the mask follows from the heads, it is still 0 everywhere.

    Args:
        photo: (H, W, 3) uint8, upright.
        edit: what is asked for.
        size: (height, width) of the canvas.
        shown: the person in the photo whose face is changed, if there is one.

    Raises:
        PhotoError: the mask picture does not fit the photo.
    """
    painted = None
    if edit.paints:
        painted = edit_mask.read_mask(edit.mask, photo.shape[:2], photo_name(edit.photo))
        square = None
        if shown is not None:
            side = len(shown.square)
            middle = align.apply(align.invert(shown.place), np.full((1, 2), side / 2))[0]
            square = middle, side / float(shown.place[0, 0])
        place = around_mask(painted, size, square)
    elif edit.whole:
        place = of_whole_photo(photo, size)
    else:
        assert shown is not None
        place = around_head(shown.place, len(shown.square), size)
    image = align.warp(photo, place, size, border="repeat")
    if painted is not None:
        painted = faded_inwards(painted)
        mask = np.clip(align.warp(painted, place, size), 0, 1)
    else:
        mask = np.full(size, float(edit.whole), np.float32)
    return Canvas(photo, place, image, mask, painted)


def warn_if_soft(canvas: Canvas) -> None:
    """Log a notice where the photo is sharper than what the model paints in it."""
    if canvas.enlargement > _SOFT and (canvas.mask > 0.5).any():
        height, width = canvas.mask.shape
        log.warning(
            "a part of the photo of %.0fx%.0f pixels is changed, and the model makes %dx%d: what "
            "it paints there comes out softer than the photo",
            width * canvas.enlargement,
            height * canvas.enlargement,
            width,
            height,
        )


def around_head(square: np.ndarray, side: int, size: tuple[int, int]) -> np.ndarray:
    """Place (2, 3) of a canvas with the middle and the height of a head's square.

    Args:
        square: (2, 3), photo pixels to the square's.
        side: of the square in its pixels.
        size: (height, width) of the canvas.
    """
    height, width = size
    scale = height / side
    return combined(np.array([[scale, 0, (width - height) / 2], [0, scale, 0]]), square)


def around_mask(
    mask: np.ndarray, size: tuple[int, int], head: tuple[np.ndarray, float] | None
) -> np.ndarray:
    """Place (2, 3) of a canvas that shows a painted mask, its surroundings, and the head's square.

    Args:
        mask: (H, W) of the photo.
        size: (height, width) of the canvas.
        head: center (x, y) and side of the head's square in photo pixels, if there is one.
    """
    rows, columns = (np.flatnonzero((mask > 0).any(axis=axis)) for axis in (1, 0))
    low = np.array([columns[0], rows[0]], float)
    high = np.array([columns[-1] + 1, rows[-1] + 1], float)
    if head is not None:
        center, side = head
        low, high = np.minimum(low, center - side / 2), np.maximum(high, center + side / 2)
    height, width = size
    around = 1.0 if head is not None else _AROUND_MASK
    scale = min(width / (high - low)[0], height / (high - low)[1]) / around
    scale = min(scale, max(height / mask.shape[0], width / mask.shape[1], 1.0))
    middle = (low + high) / 2
    return np.array(
        [[scale, 0, width / 2 - scale * middle[0]], [0, scale, height / 2 - scale * middle[1]]]
    )


def of_whole_photo(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Place (2, 3) of a canvas that shows the whole photo."""
    height, width = size
    scale = min(height / photo.shape[0], width / photo.shape[1])
    shift = [(width - scale * photo.shape[1]) / 2, (height - scale * photo.shape[0]) / 2]
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])


def size_for(photo: np.ndarray, size: tuple[int, int], step: int) -> tuple[int, int]:
    """(width, height) of a canvas of a whole photo: its shape, about as many pixels as the model's
    own size (height, width), in whole `step`s.
    """
    stretch = math.sqrt(photo.shape[1] / photo.shape[0])
    stretch = min(max(stretch, 0.5), 2.0)  # a longer photo leaves bars at the ends
    whole = lambda side: max(step, round(side / step) * step)
    return whole(size[1] * stretch), whole(size[0] / stretch)


def head_on_canvas(
    model: HeadModel, head: Head, square: np.ndarray, place: np.ndarray, size: tuple[int, int]
) -> Head:
    """A head in the pixels of its square (`square`: photo pixels to the square's) as it stands on
    the canvas of `size` (height, width).
    """
    matrix = combined(place, align.invert(square))
    if np.allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-9):
        return head
    return transform_head(head, model, matrix, *size)


def combined(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The transform (2, 3) of `first`, then `second`."""
    linear = second[:, :2] @ first[:, :2]
    return np.column_stack([linear, second[:, :2] @ first[:, 2] + second[:, 2]])


def faded_inwards(mask: np.ndarray) -> np.ndarray:
    """A painted mask (H, W) with its edge faded inwards, so that nothing outside it changes."""
    inside = cv2.distanceTransform((mask > 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    rows, columns = (np.flatnonzero((mask > 0).any(axis=axis)) for axis in (1, 0))
    feather = max(2.0, 0.06 * min(np.ptp(rows), np.ptp(columns)))
    return mask * np.clip(inside / feather, 0, 1).astype(np.float32)
