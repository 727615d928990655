"""Generates images of many people in one batch, and measures people in photos, with a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from caphuman_jax.errors import PhotoError
from caphuman_jax.evaluation.measure import read_values, recognition_vectors
from caphuman_jax.evaluation.metrics.base import Shown
from caphuman_jax.evaluation.outcome import Subject
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.face import attributes, recognition
from caphuman_jax.head.head import Head, stack
from caphuman_jax.head.hints import render_hints_batch
from caphuman_jax.person import identity_file
from caphuman_jax.person.person import Person
from caphuman_jax.pipeline.conditioning import Conditioning
from caphuman_jax.pipeline.conditioning import Subject as ShownSubject
from caphuman_jax.pipeline.image_batches import check_finite, to_bytes
from caphuman_jax.pipeline.pipeline import Pipeline

Generator = Callable[[Sequence[Any], Sequence[Head], Sequence[str], Sequence[int]], np.ndarray]
"""generate(persons, heads, prompts, seeds) -> images (N, S, S, 3) uint8, one for each person."""


def bulk_generator(pipe: Pipeline, steps: int, guidance_scale: float) -> Generator:
    """A `Generator`. Each image is the one that `pipe(reference=…, seed=…)` makes, up to
    rounding.
    """
    size = (pipe.config.image_size,) * 2

    def make(
        persons: Sequence[Person],
        heads: Sequence[Head],
        prompts: Sequence[str],
        seeds: Sequence[int],
    ) -> np.ndarray:
        rows = []
        for person, head, prompt, seed, hints in zip(
            persons,
            heads,
            prompts,
            seeds,
            render_hints_batch(pipe.head_model, stack(list(heads)), *size),
        ):
            request = pipe.request(
                reference=person,
                prompt=prompt,
                seed=seed,
                steps=steps,
                guidance_scale=guidance_scale,
            )
            shown = ShownSubject(person, None, head, hints)
            rows.append((Conditioning(request, (shown,)), 0))
        images = np.asarray(pipe.make(rows)[0])
        check_finite(images)
        return to_bytes(images)

    return make


def subject_reader(pipe: Pipeline, drawings: bool = True) -> Callable[[Photo], Subject]:
    """A function that measures one photo.

    It takes the largest face of a record, since `prepare` decided which photos show one person, and
    the face that an identity file was made of.

    Args:
        pipe: measures the person as for generation.
        drawings: accept drawings and paintings.

    Returns:
        read(photo) -> Subject. It raises PhotoError for a photo without a face or with several,
        and, without `drawings`, for a drawn one.
    """

    def read(photo: Photo) -> Subject:
        person = pipe.person(photo.source(), face=0)
        chosen = photo.path is None or identity_file.is_identity_file(photo.path)
        if person.face_count > 1 and not chosen:
            raise PhotoError(
                f"{photo.name} shows {person.face_count} faces; the evaluation takes photos of one "
                f"person"
            )
        # From the square, as in generated images; `person.recognized` has seen another crop.
        known = recognition.identity(person.square, person.landmarks)
        if not drawings and attributes.worn(attributes.scores(known[1][None])[0])["drawing"]:
            raise PhotoError(f"{photo.name} is taken for a drawing or painting")
        return Subject(
            photo.name,
            person.square,
            jax.device_get(person.head),
            person,
            recognition_vectors(person.square, person.landmarks, known[0]),
            known[1],
            read_values(Shown(person.square, person.landmarks, known)),
        )

    return read
