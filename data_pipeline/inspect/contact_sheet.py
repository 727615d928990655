"""A sheet of records: photo, masks, hints over the photo, identity input, caption."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from caphuman_jax.head import visualize
from caphuman_jax.head.angles import angles_of
from caphuman_jax.head.head import Head
from data_pipeline.records import tf_example
from data_pipeline.records.columns import HEAD_FIELDS
from data_pipeline.records.schema import Feature

_TILE, _TEXT, _GAP = 176, 250, 4
_LINE = 13


def head_of(record: dict, stored: int) -> Head:
    """The `Head` of a decoded record, in pixels of its stored square of that side."""
    fields = {name: np.asarray(record[f"head/{name}"], np.float32) for name in HEAD_FIELDS}
    return Head(
        size=np.full(2, stored, np.float32),
        **fields | {"albedo": fields["albedo"] / np.float32(255)},
    )


def sheet(
    features: Sequence[Feature],
    records: Sequence[dict],
    hints: Sequence[np.ndarray | None],
    pictures: Sequence[np.ndarray | None],
) -> np.ndarray:
    """Draw records.

    Args:
        features: of the records.
        records: from `tf_example.decode`.
        hints: (S, S, 9) of each, rendered or stored, or None.
        pictures: (s, s, 3) uint8 of each, decoded from its moments, or None.

    Returns:
        (H, W, 3) uint8.
    """
    kinds = {f.name: f for f in features}
    rows = [
        (_tiles(kinds, record, hint, picture), _lines(record))
        for record, hint, picture in zip(records, hints, pictures, strict=True)
    ]
    width = max(len(tiles) for tiles, _ in rows) * (_TILE + _GAP) + _TEXT
    columns = max(1, round((len(rows) / 6) ** 0.5))
    page = Image.new("RGB", (width * columns, -(-len(rows) // columns) * (_TILE + _GAP)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for number, (tiles, lines) in enumerate(rows):
        left, top = number % columns * width, number // columns * (_TILE + _GAP)
        for picture in tiles:
            page.paste(
                Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS),
                (left, top),
            )
            left += _TILE + _GAP
        for i, line in enumerate(lines[: _TILE // _LINE]):
            pen.text((left, top + i * _LINE), line, "black", font)
    return np.asarray(page)


def pixels_of(kinds: dict[str, Feature], record: dict) -> dict[str, np.ndarray]:
    """{name: pixels} of the images on the sheet. Raises DataError if one cannot be decoded."""
    return {
        name: tf_example.decode_image(kinds[name], record[name])
        for name in ("photo", "region", "person_mask", "identity_input")
    }


def _tiles(kinds, record, hints, picture):
    pixels = pixels_of(kinds, record)
    photo = pixels["photo"]
    tiles = [
        _covered(photo, record["covered"]),
        _masks(photo, pixels["region"], pixels["person_mask"]),
    ]
    if hints is not None:
        normals, _, rendered = visualize.hint_pictures(hints)
        there = np.any(hints[..., :3] != 0, axis=-1, keepdims=True)
        tiles += [
            np.where(there, photo // 4 + normals // 4 * 3, photo),
            np.where(there, rendered, photo),
        ]
    tiles.append(pixels["identity_input"])
    return tiles if picture is None else [*tiles, picture]


def _covered(photo, covered):
    """The square with a frame around the part that the photo covers."""
    x0, y0, x1, y1 = (round(float(v) * len(photo)) for v in covered)
    return cv2.rectangle(
        photo.copy(), (x0, y0), (x1 - 1, y1 - 1), (255, 200, 0), max(1, len(photo) // 170)
    )


def _masks(photo, region, person):
    """The face tinted red, and everything but the person darkened."""
    side = len(photo)
    face, body = (
        cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR)[..., None] / 255
        for mask in (region, person)
    )
    shaded = photo * (0.35 + 0.65 * body)
    return np.round(shaded * (1 - 0.4 * face) + np.array([255, 40, 40]) * 0.4 * face).astype(
        np.uint8
    )


def _lines(record):
    yaw, pitch, roll = angles_of(record["head/rotation"], np)
    facts = [
        record["key"],
        *([f"person {record['person']}"] if record["person"] else []),
        f"yaw {yaw:.0f} pitch {pitch:.0f} roll {roll:.0f}, fit {record['head/residual']:.3f}",
        f"face {record['face_px']:.0f} px, sharpness {record['sharpness']:.3g}",
    ]
    facts += (
        [f"partners {[int(p) for p in record['partners'] if p >= 0]}"]
        if np.any(record["partners"] >= 0)
        else []
    )
    return [line for fact in [*facts, *record["captions"]] for line in textwrap.wrap(fact, 42)]
