"""The suites of `caphuman evaluate` besides that of prompts and heads, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from caphuman_jax.evaluation import edits, people, small_faces
from caphuman_jax.evaluation.metrics.base import Goal


class Suite(NamedTuple):
    """A suite.

    Attributes:
        run: (pipe, photos, subjects, folder, per_person=, seed=, **sampling) → what was made.
        compute: (pipe, subjects, what was made) → results, JSON types.
        goals: of the results.
        samples: fields of `SamplingParams` that it takes besides steps and guidance_scale.
    """

    run: Callable[..., Sequence[Any]]
    compute: Callable[..., dict[str, Any]]
    goals: Sequence[Goal]
    samples: tuple[str, ...] = ()


SUITES = {
    "people": Suite(people.run_people, people.compute, people.GOALS, ("detail",)),
    "edit": Suite(edits.run_edits, edits.compute, edits.GOALS),
    "small-faces": Suite(
        small_faces.run_small_faces, small_faces.compute, small_faces.GOALS, ("detail",)
    ),
}
