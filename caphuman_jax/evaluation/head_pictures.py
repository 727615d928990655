"""Renders of the heads that were asked for, to look at next to the pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from caphuman_jax.evaluation.metrics.base import Run
from caphuman_jax.evaluation.outcome import HeadParams, light_from
from caphuman_jax.head import pose
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.editing import face_height
from caphuman_jax.head.head import Head, stack
from caphuman_jax.head.hints import render_hints_batch
from caphuman_jax.head.spherical_harmonics import SH_CONSTANTS
from caphuman_jax.io import atomic
from caphuman_jax.runtime.fixed_batches import batches

FOLDER = "heads"
_SIDE, _AT_A_TIME, _QUALITY = 128, 8, 80
_BACKGROUND = np.array([0.46, 0.44, 0.42], np.float32)


def write_heads(folder: Path, run: Run) -> list[str]:
    """Write the head of each outcome, heads/NNNNN.webp; equal ones once.

    Args:
        folder: of the report.
        run: its outcomes.

    Returns:
        The file of each outcome, relative to the folder.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    files: dict[tuple, str] = {}
    names, waiting = [], []
    for outcome in run.outcomes:
        asked = outcome.asked_in_square
        params = dataclasses.astuple(asked)
        key = (outcome.person, *(np.round(part, 4).tobytes() for part in params))
        if key not in files:
            files[key] = f"{FOLDER}/{len(files):05d}.webp"
            waiting.append((files[key], run.subjects[outcome.person].head, asked))
        names.append(files[key])
    for part, filled in batches(waiting, _AT_A_TIME):
        heads = stack([asked_head(run.model, own, asked) for _, own, asked in filled])
        hints, alpha = jax.device_get(render_hints_batch(run.model, heads, _SIDE, _SIDE, True))
        shown = hints[..., 6:].clip(0, 1) * alpha + _BACKGROUND * (1 - alpha)
        for (name, _, _), image in zip(part, np.rint(shown * 255).astype(np.uint8)):
            with atomic.file(folder / name) as path:
                Image.fromarray(image).save(path, "WEBP", quality=_QUALITY)
    return names


def asked_head(model: HeadModel, own: Head, asked: HeadParams) -> Head:
    """A subject's own head with the numbers that were asked for.

    Of the light, only how much more comes from the right and from above is known.
    """
    height, width = (float(side) for side in np.asarray(own.size))
    x, y, size = asked.position
    light = np.asarray(own.light)
    if not np.allclose(light_from(light), asked.light, atol=0.005):
        even = light[0].mean() * SH_CONSTANTS[0]
        light = light.copy()
        light[1:] = 0
        light[1:3] = (asked.light * even / SH_CONSTANTS[1:3])[:, None]
    return dataclasses.replace(
        own,
        rotation=np.asarray(pose.rotation_matrix(*map(float, asked.angles))),
        expression=asked.expression.astype(np.float32),
        translation=np.array([x * width, y * height], np.float32),
        scale=np.array(size * height / face_height(model), np.float32),
        light=light.astype(np.float32),
    )
