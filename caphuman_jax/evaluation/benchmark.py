"""The people that an evaluation is about, and how exactly they can be measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from caphuman_jax.errors import CapHumanError
from caphuman_jax.evaluation.measure import measure_images
from caphuman_jax.evaluation.outcome import HeadParams, Outcome, Subject
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.face import align
from caphuman_jax.head.base import HeadEstimator, HeadModel
from caphuman_jax.head.camera import transform_head
from caphuman_jax.head.head import Head
from caphuman_jax.runtime.fixed_batches import batches
from caphuman_jax.runtime.progress import progress_bar

_log = logging.getLogger("caphuman_jax")

FLOOR_ROLL = 15.0  # degrees: the measurement floor rotates reference photos by at most this


def read_subjects(
    photos: Sequence[Photo], read: Callable[[Photo], Subject]
) -> tuple[list[Subject], dict[str, str]]:
    """Measure the people in photos.

    Args:
        photos: of one person each.
        read: measures one photo; raises a CapHumanError for a photo that cannot be used.

    Returns:
        The subjects, and {photo's name: reason} of the photos that were skipped.
    """
    subjects, skipped = [], {}
    for photo in progress_bar(iterable=photos, desc="photos", unit="photo"):
        try:
            subjects.append(read(photo))
        except CapHumanError as problem:
            text = str(problem)
            skipped[photo.name] = text.replace(str(photo.path), photo.name) if photo.path else text
    return subjects, skipped


def run_measurement_floor(
    model: HeadModel,
    subjects: Sequence[Subject],
    *,
    seed: int,
    batch: int,
    head_of: HeadEstimator | None = None,
) -> list[Outcome]:
    """Measure the reference photos themselves, mirrored and rotated by known angles, exactly as
    generated images are measured: the least error that a perfect model would show.

    The requested head is the photo's, transformed as the photo was.
    """
    rng = np.random.default_rng([seed, 2])
    jobs = [
        (i, mirror, float(rng.uniform(-FLOOR_ROLL, FLOOR_ROLL)))
        for i in range(len(subjects))
        for mirror in (False, True)
    ]
    outcomes = []
    for part, filled in batches(jobs, batch):
        changed = [turned(model, subjects[i], mirror, angle) for i, mirror, angle in filled]
        measured = measure_images(model, [picture for picture, _ in changed], head_of)
        outcomes += [
            Outcome(
                None, i, HeadParams.of(model, head), HeadParams.of(model, subjects[i].head), shown
            )
            for (i, _, _), (_, head), shown in zip(part, changed, measured)
        ]
    return outcomes


def turned(
    model: HeadModel, subject: Subject, mirror: bool, degrees: float
) -> tuple[np.ndarray, Head]:
    """The subject's picture, mirrored if `mirror` and rotated clockwise about its middle, and its
    head transformed in the same way.
    """
    size = subject.picture.shape[0]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    middle = np.full(2, size / 2)
    matrix = np.column_stack([linear, middle - linear @ middle])
    picture = align.warp(subject.picture, matrix, size, border="repeat")
    scale = size / float(subject.head.size[0])
    in_head = np.column_stack([linear * scale, matrix[:, 2]])
    return picture, jax.device_get(transform_head(subject.head, model, in_head, size, size))
