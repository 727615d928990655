"""Which part of a picture is whose, where people have words of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from caphuman_jax.errors import PhotoError
from caphuman_jax.face.crop import head_square
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import fit_to_size
from caphuman_jax.head.lighting import landmarks_in_picture
from caphuman_jax.io.images import PhotoSource, photo_name, read_mask_picture
from caphuman_jax.pipeline.head_target import HeadTarget
from caphuman_jax.pipeline.request import SubjectRequest

# Face over head square: a head in a box is framed as a reference photo is.
_FACE = 0.5
_SHAPE = 0.02  # by how much a mask's aspect ratio may differ from the picture's


def placed(target: HeadTarget, box: Sequence[float] | None, height: int, width: int) -> HeadTarget:
    """A head that stands in its box where no position is asked for: in the middle of the largest
    square at the top.

    Args:
        target: the head that is asked for.
        box: (x0, y0, x1, y1) in widths and heights of the picture; None: it stays.
        height, width: of the picture in pixels.
    """
    if box is None or target.position is not None:
        return target
    x0, y0, x1, y1 = box
    side = min((x1 - x0) * width / height, y1 - y0)  # in heights
    position = ((x0 + x1) / 2, y0 + side / 2, max(_FACE * side, 0.02))
    return dataclasses.replace(target, position=position)


def region_masks(
    model: HeadModel,
    people: Sequence[SubjectRequest],
    heads: Sequence[Head],
    size: tuple[int, int],
    latents: tuple[int, int],
) -> np.ndarray:
    """The people's parts of a picture, (P, h, w) float32 in [0, 1]. They do not overlap: where two
    are asked for, the nearer head has it.

    Args:
        model: of the heads.
        people: what is asked for.
        heads: of the people in the picture.
        size: (height, width) of the picture.
        latents: (h, w) of its latents.

    Raises:
        PhotoError: a mask that cannot be read, has another shape than the picture, or is empty.
    """
    masks = np.zeros((len(people), *latents), np.float32)
    left = np.ones(latents, np.float32)
    heads = [fit_to_size(head, *size) for head in heads]
    for number in np.argsort([-float(head.scale) for head in heads], kind="stable"):
        asked = people[number]
        if asked.mask is not None:
            area = _painted(asked.mask, size, latents)
        else:
            box = _around(model, heads[number], size) if asked.box is None else asked.box
            area = _covered(box, latents)
        masks[number] = np.minimum(area, left)
        left = left - masks[number]
    return masks


def _covered(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """(h, w) float32: how much of each cell a box covers."""
    x0, y0, x1, y1 = box
    along = lambda low, high, count: np.clip(
        np.minimum(high * count, np.arange(count) + 1) - np.maximum(low * count, np.arange(count)),
        0,
        1,
    )
    return np.outer(along(y0, y1, size[0]), along(x0, x1, size[1])).astype(np.float32)


def _around(model: HeadModel, head: Head, size: tuple[int, int]) -> tuple[float, ...]:
    """The box of a head with what is below it."""
    (x, y), side = head_square(landmarks_in_picture(model, head))
    height, width = size
    ends = np.clip([(x - side / 2) / width, (y - side / 2) / height, (x + side / 2) / width], 0, 1)
    return (*map(float, ends), 1.0)


def _painted(source: PhotoSource, size: tuple[int, int], latents: tuple[int, int]) -> np.ndarray:
    mask = read_mask_picture(source)
    height, width = mask.shape
    if abs(np.log(width / height * size[0] / size[1])) > _SHAPE:
        raise PhotoError(
            f"the mask {photo_name(source)} is {width}x{height} pixels, and the picture "
            f"{size[1]}x{size[0]}; they must have the same shape"
        )
    if not (mask > 0.5).any():
        raise PhotoError(
            f"the mask {photo_name(source)} covers nothing; paint white where the person is"
        )
    return cv2.resize(mask, latents[::-1], interpolation=cv2.INTER_AREA)
