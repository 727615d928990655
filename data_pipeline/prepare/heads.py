"""Heads of stored squares: fitted to landmarks in batches; their hints as records store them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import cv2
import jax
import numpy as np

from caphuman_jax.head import hints
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.face_fitting import fit_heads
from caphuman_jax.head.head import Head
from caphuman_jax.nn.typing import Array
from data_pipeline.prepare.encode import batches

HEADS = 8
"""Heads at a time; always the same number, so that nothing is compiled twice."""

_FIT_SIDE = 512
"""Largest side of the image that a head's colors are read from, as in `fitting.head_from_photo`."""


def middle_of(square: np.ndarray, size: int) -> np.ndarray:
    """The part (size, size, 3) of a stored square that training sees without shift and rotation."""
    edge = (len(square) - size) // 2
    return square[edge : edge + size, edge : edge + size]


def fit_squares(
    model: HeadModel,
    squares: Sequence[np.ndarray],
    landmarks: Sequence[np.ndarray],
    covered: Sequence[np.ndarray],
    expressions: Sequence[np.ndarray],
    size: int,
) -> list[Head]:
    """Heads fitted to landmarks, colored from the middle of the square: of one size for all photos.

    Args:
        model: of the heads.
        squares: (S, S, 3) uint8 of each photo.
        landmarks: (478, 3) in pixels of its square.
        covered: (4,), the rectangle of the square that is photo, in pixels.
        expressions: ARKit weights.
        size: side of the middle.
    """
    stored = len(squares[0])
    side, offset = min(size, _FIT_SIDE), np.float32((stored - size) / 2)
    scale = np.float32(side / size)
    images, visible, marks = [], [], []
    for square, points, rectangle in zip(squares, landmarks, covered):
        image = middle_of(square, size)
        if side != size:
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        images.append(image)
        marks.append((points - np.array([offset, offset, 0], np.float32)) * scale)
        seen = np.zeros((side, side), np.float32)
        left, top, right, bottom = np.clip((rectangle - offset) * scale, 0, side).astype(int)
        seen[top:bottom, left:right] = 1
        visible.append(seen)
    columns = (np.stack(rows) for rows in (images, marks, expressions, visible))
    heads: list[Head] = []
    for parts in zip(*(batches(column, HEADS) for column in columns)):
        count = parts[0][1]
        heads += fit_heads(model, *(rows for rows, _ in parts))[:count]
    return [
        dataclasses.replace(
            head,
            scale=head.scale / scale,
            translation=head.translation / scale + offset,
            size=np.full(2, stored, np.float32),
        )
        for head in heads
    ]


def hint_pictures(model: HeadModel, records: list[dict], stored: int) -> Iterator[np.ndarray]:
    """Rendered hints (3S, S, 3) uint8 of the heads as the records store them."""
    fields = [field.name for field in dataclasses.fields(Head)]
    stacked = {
        name: np.stack([record[f"head/{name}"] for record in records])
        for name in fields
        if name != "size"
    }
    stacked |= {
        "albedo": stacked["albedo"].astype(np.float32) / 255,
        "size": np.full((len(records), 2), stored, np.float32),
    }
    for parts in zip(*(batches(stacked[name], HEADS) for name in fields)):
        heads, count = Head(**{name: rows for name, (rows, _) in zip(fields, parts)}), parts[0][1]
        yield from np.asarray(_hint_pictures(model, heads, stored))[:count]


@functools.partial(jax.jit, static_argnums=2)
def _hint_pictures(model, heads: Head, size: int) -> Array:
    """(B, 3·size, size, 3) uint8, see `hints.to_picture`."""
    rendered = hints.render_hints_batch(model, heads, size, size)
    return hints.to_picture(hints.pack_hints(rendered))
