"""The `small-faces` suite: how well faces of several sizes keep identity and pose, as they are made
and sampled again with `detail`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caphuman_jax.evaluation.asked import Asked, Look, reference_name
from caphuman_jax.evaluation.metrics.base import Goal
from caphuman_jax.evaluation.outcome import HeadParams, Subject
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.face.crop import crop_square, head_square
from caphuman_jax.head.lighting import landmarks_in_picture
from caphuman_jax.pipeline.conditioning import Conditioning
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.small_faces import SMALL

GOALS = (
    Goal(
        "64 px with detail: right person first among 50 (dlib), less that of 160 px",
        "small_faces.64_less_160",
        ">=",
        0.0,
    ),
    Goal("64 px with detail: yaw error, median, degrees", "small_faces.64_detail.yaw", "<=", 3.5),
)
DETAIL = 0.45
_PROMPT = "a photo of a person"
_MADE_FOR = 256


def conditions(sizes: Sequence[int], detail: float) -> list[tuple[int, float]]:
    """(size, detail) of all that is made: small faces also with detail."""
    small = [size for size in sizes if size < SMALL * _MADE_FOR]
    return [(size, 0.0) for size in sizes] + [(size, detail) for size in small]


def ask(
    pipe: Pipeline,
    subjects: Sequence[Subject],
    *,
    sizes: Sequence[int],
    per_person: int = 1,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
) -> list[Asked]:
    """Pictures of each person with faces of several sizes.

    Args:
        pipe: not used; the suites share their arguments.
        subjects: the people.
        sizes: heights of faces, chin to hairline, in pixels of a model that makes 256; others in
            proportion.
        per_person: pictures of each person, of the `conditions` in turn.
        seed: of the first person's pictures.
        sampling: fields of `SamplingParams`; `detail` is for the small faces.
    """
    del pipe
    every = conditions(sizes, (sampling or {}).get("detail", DETAIL))
    asked = []
    for person in range(len(subjects)):
        for _ in range(per_person):
            size, detail = every[len(asked) % len(every)]
            text = f"{size} px" + (f", detail {detail:g}" if detail else "")
            request = Request(len(asked), person, text, _PROMPT, seed + person)
            fields = {
                "reference": reference_name(person),
                "prompt": _PROMPT,
                "head": {"position": [0.5, 0.5, size / _MADE_FOR]},
                "seed": seed + person,
                "detail": detail,
            }
            asked.append(Asked(fields, (request,)))
    return asked


def look(pipe: Pipeline, made_from: Conditioning, picture: np.ndarray) -> list[Look]:
    """The square around the place of each person's head."""
    looks, side = [], pipe.config.image_size
    height, width = picture.shape[:2]
    for subject in made_from.subjects:
        center, length = head_square(landmarks_in_picture(pipe.head_model, subject.head))
        square = crop_square(picture, center, length, side)[0]
        left, top = (center - length / 2) / (width, height)
        frame = (float(left), float(top), length / width, length / height)
        looks.append(Look(square, HeadParams.of(pipe.head_model, subject.head), frame))
    return looks
