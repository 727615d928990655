"""The `edit` suite: photos with their heads changed, measured as generated images are, and what
became of the photo outside the mask and at its edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from caphuman_jax.evaluation.asked import Asked, Look, photo_name
from caphuman_jax.evaluation.metrics.base import Goal
from caphuman_jax.evaluation.metrics.edited_photos import OUTSIDE, SEAM
from caphuman_jax.evaluation.outcome import HeadParams, Subject
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.face import align
from caphuman_jax.pipeline.canvas import Canvas, head_on_canvas
from caphuman_jax.pipeline.conditioning import Conditioning
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.request import EDIT_PROMPT

GOALS = (
    Goal("right person first among 50 (dlib)", "identity.dlib.rank1_among_50.value", ">=", 0.98),
    Goal("yaw error, median, degrees", "edit.yaw", "<=", 2.0),
    Goal("pitch error, median, degrees", "edit.pitch", "<=", 3.5),
    Goal("smile correlation", "expression.smile.all.correlation.value", ">=", 0.8),
    Goal("pixels changed outside the mask", "edit.changed_outside", "<=", 0),
    Goal("seam, over the photo's own", "edit.seam", "<=", 1.3),
)


def ask(
    pipe: Pipeline,
    subjects: Sequence[Subject],
    *,
    changes: Sequence[Mapping[str, Any]],
    per_person: int = 1,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
) -> list[Asked]:
    """Edits of each person's photo.

    Args:
        pipe, sampling: not used; the suites share their arguments.
        subjects: the people.
        changes: of heads, one after the other over the people. Angles are added to the photo's own.
        per_person: edits of each person.
        seed: of the first edit's noise.
    """
    del pipe, sampling
    asked: list[Asked] = []
    for person, subject in enumerate(subjects):
        own = dict(zip(("yaw", "pitch", "roll"), map(float, np.asarray(subject.head.angles))))
        for _ in range(per_person):
            number = len(asked)
            change = changes[number % len(changes)]
            head = {n: own[n] + value if n in own else value for n, value in change.items()}
            text = ", ".join(f"{name} {value}" for name, value in change.items())
            request = Request(number, person, text, EDIT_PROMPT, seed + number)
            fields = {
                "edit": {"photo": photo_name(person), "face": 0},
                "head": head,
                "seed": seed + number,
            }
            asked.append(Asked(fields, (request,)))
    return asked


def look(pipe: Pipeline, made_from: Conditioning, picture: np.ndarray) -> list[Look]:
    """The head's square in the edited photo, as the model frames the photo."""
    canvas, (subject,) = made_from.canvas, made_from.subjects
    assert canvas is not None, "a photo is edited"
    place, side = subject.person.place, len(subject.person.square)
    square = align.warp(picture, place, side, border="repeat")
    head = head_on_canvas(pipe.head_model, subject.head, canvas.place, place, (side, side))
    changed = (picture != canvas.photo).any(axis=-1)
    values = {OUTSIDE: int(changed[~reaches(canvas)].sum()), SEAM: seam(canvas, picture)}
    return [Look(square, HeadParams.of(pipe.head_model, head), values=values)]


def reaches(canvas: Canvas) -> np.ndarray:
    """(H, W) bool: the photo's pixels that the mask reaches, at its own resolution."""
    height, width = canvas.photo.shape[:2]
    if canvas.photo_mask is not None:
        return canvas.photo_mask > 0
    changed = (canvas.changed > 0).astype(np.uint8)
    changed = cv2.dilate(changed, np.ones((3, 3), np.uint8)).astype(np.float32)
    back = align.invert(canvas.place)
    return align.warp(changed, back, (height, width)) > 0


def seam(canvas: Canvas, after: np.ndarray) -> float:
    """Mean change of brightness across the mask's edge, over that of what stood there before
    sampling: 1 for an edge that cannot be seen.

    Args:
        canvas: of the edit.
        after: (H, W, 3) uint8, the edited photo.
    """
    inwards = np.stack(np.gradient(cv2.GaussianBlur(canvas.mask, (0, 0), 1.0)), axis=-1)
    length = np.linalg.norm(inwards, axis=-1)
    edge = (canvas.mask > 0.02) & (canvas.mask < 0.98) & (length > 1e-3)
    if not edge.any():
        return float("nan")
    normal = inwards / np.maximum(length, 1e-6)[..., None]

    def across(image):
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        slope = np.stack(np.gradient(gray), axis=-1)
        return float(np.abs((slope * normal).sum(axis=-1))[edge].mean())

    made = align.warp(after, canvas.place, canvas.mask.shape, border="repeat")
    return across(made) / max(across(canvas.image), 1e-6)
