"""Pictures of several people: whether each place shows its own person, and whether the words of one
person change that face.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, averaged, mean
from caphuman_jax.evaluation.outcome import RECOGNIZERS
from caphuman_jax.face import attributes

ATTRIBUTE = "glasses"
GOALS_FOR = 3  # people in a picture


def right_place(run: Run, recognizer: str = RECOGNIZERS[0]) -> np.ndarray:
    """(N,) 1 where the face is most like its own person among those in the picture, 0 where it is
    not or no face shows; NaN where the picture shows one person.
    """
    answer = np.full(len(run.outcomes), np.nan)
    for i, outcome in enumerate(run.outcomes):
        if outcome.request is None or not outcome.request.people:
            continue
        people = outcome.request.people
        known = np.stack([run.subjects[one].vectors[recognizer] for one in people])
        distance = np.linalg.norm(known - outcome.measured.vectors[recognizer], axis=1)
        right = outcome.measured.faces and people[int(distance.argmin())] == outcome.person
        answer[i] = float(bool(right))
    return answer


def attribute_in_place(run: Run) -> np.ndarray:
    """(N,) of the face that was to have the attribute: 1 where it gained most of it in the picture,
    compared with the people's photos, 0 where another one did; NaN elsewhere, and where no face of
    the picture was found.
    """
    answer = np.full(len(run.outcomes), np.nan)
    pictures: dict[int, list[int]] = {}
    for i, outcome in enumerate(run.outcomes):
        if outcome.request is not None and outcome.request.people:
            place = outcome.request.people.index(outcome.person)
            pictures.setdefault(outcome.request.number - place, []).append(i)
    for rows in pictures.values():
        gained = np.array([_gained(run, i) for i in rows])
        if np.isfinite(gained).any():
            most = rows[int(np.nanargmax(gained))]
            for i in rows:
                request = run.outcomes[i].request
                if request is not None and ATTRIBUTE in request.prompt:
                    answer[i] = float(i == most)
    return answer


def compute(run: Run) -> dict[str, Any]:
    """people.N: pictures; faces, the share of places with one; right, the share of places whose
    face is most like its own person among those in the picture (dlib; right_RECOGNIZER); attribute,
    the share of pictures in which the face that was to have it gained most of it; chance, 1 / N.

    in_place.{right, attribute}: of all pictures. {} where nobody asked for several people.
    """
    counts = np.array([len(request.people) for request in run.requests])
    if not counts.any():
        return {}
    results: dict[str, Any] = {}
    right = {name: right_place(run, name) for name in RECOGNIZERS}
    attribute = attribute_in_place(run)
    faces = np.array([float(outcome.measured.faces > 0) for outcome in run.outcomes])
    for count in sorted({GOALS_FOR, *map(int, counts[counts > 0])}):
        mine = counts == count
        results[str(count)] = {
            "pictures": int(mine.sum()) // count,
            "faces": mean(faces[mine]),
            "right": mean(right[RECOGNIZERS[0]][mine]),
            **{f"right_{name}": mean(values[mine]) for name, values in right.items()},
            "attribute": mean(attribute[mine]),
            "chance": 1 / count,
        }
    in_place = {
        "right": averaged(run, right_place),
        "attribute": averaged(run, attribute_in_place),
    }
    return {"people": results, "in_place": in_place}


def _gained(run: Run, i: int) -> float:
    """How much more of the attribute a face has than its photo, in the probe's units."""
    number, name = attributes.names().index(ATTRIBUTE), "worn"
    outcome = run.outcomes[i]
    measured, own = outcome.measured.values, run.subjects[outcome.person].values
    if name not in measured or name not in own:
        return float("nan")
    return float(measured[name][number] - own[name][number])


METRIC = Metric(
    compute,
    measures=(
        Measure(
            "right-place",
            "right person in the right place",
            "in_place.right",
            "up",
            "Share of the places whose face is nearest to its own person's photo among the people "
            "in the picture; a place without a face counts as wrong.",
            "distance of dlib's face recognition vectors",
            "share",
            right_place,
        ),
        Measure(
            "attribute-in-place",
            f"{ATTRIBUTE} in the right face",
            "in_place.attribute",
            "up",
            f"Share of the pictures in which the face that was to have {ATTRIBUTE} gained most of "
            "them, compared with the photos.",
            "linear probes on MobileFaceNet's features (face/attributes.py)",
            "share",
            attribute_in_place,
        ),
    ),
    requests_only=True,
    order=91,
)
