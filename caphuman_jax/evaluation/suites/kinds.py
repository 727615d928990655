"""The kinds of suites besides "requests", by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from caphuman_jax.evaluation import edits, people, small_faces
from caphuman_jax.evaluation.asked import Asked, Look
from caphuman_jax.evaluation.metrics.base import Goal
from caphuman_jax.pipeline.conditioning import Conditioning
from caphuman_jax.pipeline.pipeline import Pipeline


class Kind(NamedTuple):
    """A kind of suite.

    Attributes:
        ask: (pipe, subjects, per_person=, seed=, sampling=, **parameters) → what is asked for;
            parameters: the entries of this kind in the suite's file.
        look: (pipe, what a picture is made from, the picture (H, W, 3) uint8) → where each face
            was asked for in it.
        goals: of the results.
        edits: whether jobs change the people's photos.
    """

    ask: Callable[..., list[Asked]]
    look: Callable[[Pipeline, Conditioning, np.ndarray], list[Look]]
    goals: Sequence[Goal]
    edits: bool = False


KINDS = {
    "people": Kind(people.ask, people.look, people.GOALS),
    "edit": Kind(edits.ask, edits.look, edits.GOALS, edits=True),
    "small-faces": Kind(small_faces.ask, small_faces.look, small_faces.GOALS),
}
