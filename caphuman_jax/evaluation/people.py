"""The `people` suite: several people in one picture, each with words of their own, in their own
place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caphuman_jax.evaluation import small_faces
from caphuman_jax.evaluation.asked import Asked, reference_name
from caphuman_jax.evaluation.metrics.base import Goal, different_people
from caphuman_jax.evaluation.metrics.several_people import ATTRIBUTE, GOALS_FOR
from caphuman_jax.evaluation.outcome import Subject
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.pipeline.pipeline import Pipeline

GOALS = (
    Goal(
        f"{GOALS_FOR} people: right person in the right place (dlib)",
        f"people.{GOALS_FOR}.right",
        ">=",
        0.95,
        f"people.{GOALS_FOR}.pictures",
    ),
    Goal(
        f"{GOALS_FOR} people: attribute in the right face",
        f"people.{GOALS_FOR}.attribute",
        ">=",
        0.8,
        f"people.{GOALS_FOR}.pictures",
    ),
)
_PLAIN, _WITH = "a photo of a person", f"a photo of a person wearing {ATTRIBUTE}"
_WIDTH = 5 / 8  # of the picture's height, for each person

look = small_faces.look


def groups(subjects: Sequence[Subject], count: int, pictures: int, seed: int) -> list[list[int]]:
    """`pictures` groups of `count` subjects who are surely different people; each subject is used
    about equally often. Fewer where there are not as many.
    """
    rng, different = np.random.default_rng([seed, count]), different_people(subjects)
    made: list[list[int]] = []
    while len(made) < pictures:
        left, before = list(rng.permutation(len(subjects))), len(made)
        while left and len(made) < pictures:
            group: list[int] = []
            for one in list(left):
                if len(group) < count and all(different[one, other] for other in group):
                    group.append(int(one))
                    left.remove(one)
            if len(group) < count:
                break
            made.append(group)
        if len(made) == before:
            break
    return made


def ask(
    pipe: Pipeline,
    subjects: Sequence[Subject],
    *,
    counts: Sequence[int],
    per_person: int = 1,
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
) -> list[Asked]:
    """Pictures of several people side by side, one of whom is to wear glasses.

    Args:
        pipe: makes them.
        subjects: the people.
        counts: of people in one picture.
        per_person: about how many pictures of each number of people each person is in.
        seed: of groups and pictures.
        sampling: not used; the suites share their arguments.
    """
    del sampling
    asked: list[Asked] = []
    side, row = pipe.config.image_size, 0
    for count in counts:
        size = (_multiple(side * _WIDTH * count, side // 16), side)
        chosen = groups(subjects, count, len(subjects) * per_person // count, seed)
        for number, people in enumerate(chosen):
            said = [_WITH if i == number % count else _PLAIN for i in range(count)]
            requests = tuple(
                Request(
                    row + i, who, f"{count} people, place {i + 1}", text, seed + number, (*people,)
                )
                for i, (who, text) in enumerate(zip(people, said))
            )
            fields = {
                "people": [
                    {"reference": reference_name(who), "prompt": text}
                    for who, text in zip(people, said)
                ],
                "prompt": f"a photo of {count} people",
                "size": list(size),
                "seed": seed + number,
            }
            asked.append(Asked(fields, requests))
            row += count
    return asked


def _multiple(value: float, step: int) -> int:
    return max(step, round(value / step) * step)
