"""The `people` suite: several people in one picture, each with words of their own, in their own
place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from caphuman_jax.evaluation.measure import measure_images
from caphuman_jax.evaluation.metrics.base import Goal, different_people
from caphuman_jax.evaluation.outcome import RECOGNIZERS, Subject
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.evaluation.report import sheet
from caphuman_jax.face import attributes, recognition
from caphuman_jax.face.crop import crop_square, head_square
from caphuman_jax.face.face import find_faces
from caphuman_jax.head.lighting import landmarks_in_picture
from caphuman_jax.io import metadata
from caphuman_jax.io.images import write_png
from caphuman_jax.pipeline.pipeline import Pipeline

_GOALS_FOR = 3
GOALS = (
    Goal(
        f"{_GOALS_FOR} people: right person in the right place (dlib)",
        f"people.{_GOALS_FOR}.right",
        ">=",
        0.95,
    ),
    Goal(
        f"{_GOALS_FOR} people: attribute in the right face",
        f"people.{_GOALS_FOR}.attribute",
        ">=",
        0.8,
    ),
)
_ATTRIBUTE = "glasses"
_PLAIN, _WITH = "a photo of a person", f"a photo of a person wearing {_ATTRIBUTE}"
_WIDTH = 5 / 8  # of the picture's height, for each person
_PICTURES_A_SHEET = 8


@dataclasses.dataclass(frozen=True)
class Group:
    """A picture of several people.

    Attributes:
        people: indices of the subjects, from left to right.
        asked: which of them was to have the attribute.
        faces: (N,) whether each place has a face.
        nearest: {recognizer: (N,)}, which of the people the face in each place is most like, -1
            without a face.
        gained: (N,) how much more each face has of the attribute than its photo, in the probe's
            units; NaN without a face.
    """

    people: tuple[int, ...]
    asked: int
    faces: np.ndarray
    nearest: dict[str, np.ndarray]
    gained: np.ndarray


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


def run_people(
    pipe: Pipeline,
    photos: Sequence[Photo],
    subjects: Sequence[Subject],
    folder: Path,
    *,
    counts: Sequence[int],
    per_person: int = 1,
    seed: int = 0,
    **sampling: Any,
) -> list[Group]:
    """Make pictures of several people side by side, one of whom is to wear glasses, and measure
    the face in each place. Writes sheets people_N_MM.png.

    Args:
        pipe: makes the pictures.
        photos: not used; the suites share their arguments.
        subjects: the people.
        folder: of the report.
        counts: of people in one picture.
        per_person: about how many pictures of each number of people each person is in.
        seed: of groups and pictures.
        sampling: other fields of `SamplingParams`.
    """
    del photos
    references = [one.features for one in subjects if one.features is not None]
    assert len(references) == len(subjects), "subjects are of `bulk.subject_reader`"
    wears = np.stack([_score(features) for features in references])
    made = []
    for count in counts:
        chosen = groups(subjects, count, len(subjects) * per_person // count, seed)
        rows = []
        for number, people in enumerate(tqdm(chosen, desc=f"{count} people", unit="picture")):
            asked = number % count
            shown = [
                {"reference": subjects[one].person, "prompt": _WITH if i == asked else _PLAIN}
                for i, one in enumerate(people)
            ]
            side = pipe.config.image_size
            size = (_multiple(side * _WIDTH * count, side // 16), side)
            prompt, own_seed = f"a photo of {count} people", seed + number
            result = pipe(people=shown, prompt=prompt, size=size, seed=own_seed, **sampling)
            squares = []
            for subject in result.subjects:
                center, length = head_square(landmarks_in_picture(pipe.head_model, subject.head))
                squares.append(crop_square(result.images[0], center, length, side)[0])
            made.append(_measured(pipe, subjects, people, asked, squares, wears))
            rows.append([(subjects[one].picture, subjects[one].name, "") for one in people])
            rows[-1] += [(square, shown[i]["prompt"], "") for i, square in enumerate(squares)]
        for start in range(0, len(rows), _PICTURES_A_SHEET):
            name = f"people_{count}_{start // _PICTURES_A_SHEET:02d}.png"
            page = sheet(rows[start : start + _PICTURES_A_SHEET])
            write_png(folder / name, page, metadata.metadata())
    return made


def compute(pipe: Pipeline, subjects: Sequence[Subject], made: Sequence[Group]) -> dict[str, Any]:
    """people.N: pictures; faces, the share of places with one; right, the share of places whose
    face is most like its own person among those in the picture (dlib; right_RECOGNIZER); attribute,
    the share of pictures in which the face that was to have it gained most of it; chance, 1 / N.
    """
    results = {}
    for count in sorted({_GOALS_FOR, *(len(group.people) for group in made)}):
        mine = [group for group in made if len(group.people) == count]
        right = {
            name: [float(i == who) for group in mine for i, who in enumerate(group.nearest[name])]
            for name in RECOGNIZERS
        }
        gained = [
            float(np.nanargmax(group.gained) == group.asked)
            for group in mine
            if np.isfinite(group.gained).any()
        ]
        mean = lambda values: float(np.mean(values)) if len(values) else float("nan")
        results[str(count)] = {
            "pictures": len(mine),
            "faces": mean(np.concatenate([group.faces for group in mine]) if mine else []),
            "right": mean(right["dlib"]),
            **{f"right_{name}": mean(values) for name, values in right.items()},
            "attribute": mean(gained),
            "chance": 1 / count,
        }
    return {"pictures": len(made), "people": results}


def _measured(
    pipe: Pipeline,
    subjects: Sequence[Subject],
    people: Sequence[int],
    asked: int,
    squares: Sequence[np.ndarray],
    wears: np.ndarray,
) -> Group:
    measured = measure_images(pipe.head_model, squares)
    nearest = {}
    for name in RECOGNIZERS:
        known = np.stack([subjects[one].vectors[name] for one in people])
        nearest[name] = np.array(
            [
                int(np.linalg.norm(known - one.vectors[name], axis=1).argmin()) if one.faces else -1
                for one in measured
            ]
        )
    gained = np.full(len(people), np.nan)
    for i, square in enumerate(squares):
        if found := find_faces(square):
            features = recognition.identity(square, found[0].landmarks)[1]
            gained[i] = _score(features) - wears[people[i]]
    faces = np.array([one.faces > 0 for one in measured])
    return Group(tuple(people), asked, faces, nearest, gained)


def _score(features: np.ndarray) -> float:
    """The probe's score of the attribute."""
    return float(attributes.scores(features[None])[0][attributes.names().index(_ATTRIBUTE)])


def _multiple(value: float, step: int) -> int:
    return max(step, round(value / step) * step)
