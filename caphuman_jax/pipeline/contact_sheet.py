"""One image that shows a run: reference, fitted head, wanted head, hints and results, labeled."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from caphuman_jax.face import align
from caphuman_jax.head import visualize
from caphuman_jax.head.base import HeadModel
from caphuman_jax.pipeline.canvas import Canvas
from caphuman_jax.pipeline.conditioning import Subject

MOST = 60
"""Images that a contact sheet shows."""
_LABEL, _GAP, _GREY = 20, 8, 96
_COLUMNS, _WIDEST = 6, 8


def contact_sheet(
    model: HeadModel,
    subjects: Sequence[Subject],
    controls: Mapping[str, np.ndarray],
    images: np.ndarray,
    settings: Mapping[str, Any],
    tile: int = 256,
) -> np.ndarray:
    """A result as one image (H, W, 3) uint8.

    Args:
        model: of the heads.
        subjects: the people in the images.
        controls: {ControlNet: its picture}.
        images: (N, H, W, 3) uint8; the first `MOST` of them are shown.
        settings: see `Result.settings`.
        tile: height of the parts in pixels.
    """
    width, height = settings["size"]
    blank, parts = np.full((height, width, 3), _GREY, np.uint8), []
    for subject in subjects:
        tiles = [
            ("reference", subject.person.square),
            (
                f"fitted head (confidence {subject.person.confidence:.2f})",
                _fitted(model, subject.person),
            ),
        ]
        if subject.head_source is not None:
            tiles.append(("head from", _fitted(model, subject.head_source)))
        yaw, pitch, roll = (round(float(angle)) for angle in np.asarray(subject.head.angles))
        wanted = visualize.overlay(model, subject.head, blank, opacity=1.0, wireframe=False)
        tiles.append((f"requested: yaw {yaw} pitch {pitch} roll {roll}", wanted))
        if subject.hints is not None:
            tiles += zip(("normals", "albedo", "rendered"), visualize.hint_pictures(subject.hints))
        parts.append(tiles)
    parts[0] += controls.items()
    results = [
        (f"picture {settings['first_image'] + i}", picture)
        for i, picture in enumerate(images[:MOST])
    ]
    title = (
        f"\u201c{settings['prompt']}\u201d   seed {settings['seed']}, {settings['steps']} steps of "
        f"{settings['sampler']}, guidance scale {settings['guidance_scale']:g}, "
        f"control scale {settings['control_scale']:g}, model {settings['model']}; pictures are AI-generated"  # noqa: E501
    )
    return _lay_out(title, parts, results, tile)


def edit_sheet(
    model: HeadModel,
    subjects: Sequence[Subject],
    canvas: Canvas,
    images: np.ndarray,
    settings: Mapping[str, Any],
    tile: int = 256,
) -> np.ndarray:
    """An edit as one image (H, W, 3) uint8: the photo's part, the mask, the wanted head, results.

    Args:
        model: of the head.
        subjects: the person in the part that was made again, or nobody.
        canvas: that part.
        images: (N, H, W, 3) uint8, photos; the first `MOST` of them are shown.
        settings: see `Result.settings`.
        tile: height of the parts in pixels.
    """
    shown = lambda photo: align.warp(photo, canvas.place, canvas.mask.shape, border="repeat")
    mask = np.rint(canvas.changed * 255).astype(np.uint8)
    parts = [("before", canvas.image), ("mask", np.repeat(mask[..., None], 3, axis=-1))]
    for subject in subjects:
        yaw, pitch, roll = (round(float(angle)) for angle in np.asarray(subject.head.angles))
        wanted = visualize.overlay(model, subject.head, canvas.rough)
        parts.append((f"requested: yaw {yaw} pitch {pitch} roll {roll}", wanted))
    results = [
        (f"picture {settings['first_image'] + i}", shown(image))
        for i, image in enumerate(images[:MOST])
    ]
    title = (
        f"{settings['edit']['photo']['name']} edited: \u201c{settings['prompt']}\u201d   "
        f"denoise {settings['denoise']:g}, seed {settings['seed']}, {settings['steps']} steps of "
        f"{settings['sampler']}, model {settings['model']}; contains AI-generated parts"
    )
    return _lay_out(title, [parts], results, tile)


def _fitted(model, person):
    return visualize.overlay(model, person.head, person.square, person.landmarks)


def _lay_out(title, inputs, results, tile):
    scaled = [
        [(label, _scale(picture, tile)) for label, picture in part] for part in (*inputs, results)
    ]
    columns = max(min(max(map(len, inputs)), _WIDEST), min(_COLUMNS, len(results)))
    rows = [part[i : i + columns] for part in scaled for i in range(0, len(part), columns)]
    width = max(sum(picture.width + _GAP for _, picture in row) for row in rows) + _GAP
    lines = textwrap.wrap(title, max(20, math.floor(width / 7.5)))
    top = len(lines) * _LABEL + _GAP
    page = Image.new("RGB", (width, top + len(rows) * (tile + _LABEL + _GAP) + _GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, line in enumerate(lines):
        pen.text((_GAP, 4 + i * _LABEL), line, "black", font)
    y = top
    for row in rows:
        x = _GAP
        for label, picture in row:
            pen.text((x, y + 2), label, "black", font)
            page.paste(picture, (x, y + _LABEL))
            x += picture.width + _GAP
        y += tile + _LABEL + _GAP
    return np.asarray(page)


def _scale(picture, tile):
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    return (
        image
        if height == tile
        else image.resize((max(1, round(width * tile / height)), tile), Image.Resampling.LANCZOS)
    )
