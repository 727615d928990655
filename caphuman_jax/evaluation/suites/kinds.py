"""The kinds of suites besides "requests", by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from caphuman_jax.evaluation import edits, people, small_faces
from caphuman_jax.evaluation.metrics.base import Goal


class Kind(NamedTuple):
    """A kind of suite.

    Attributes:
        run: (pipe, photos, subjects, folder, per_person=, seed=, **parameters, **sampling) → what
            was made; parameters: the entries of this kind in the suite's file.
        compute: (pipe, subjects, what was made) → results, JSON types.
        goals: of the results.
        samples: fields of `SamplingParams` that it takes besides steps and guidance_scale.
    """

    run: Callable[..., Sequence[Any]]
    compute: Callable[..., dict[str, Any]]
    goals: Sequence[Goal]
    samples: tuple[str, ...] = ()


KINDS = {
    "people": Kind(people.run_people, people.compute, people.GOALS, ("detail",)),
    "edit": Kind(edits.run_edits, edits.compute, edits.GOALS),
    "small-faces": Kind(
        small_faces.run_small_faces, small_faces.compute, small_faces.GOALS, ("detail",)
    ),
}
