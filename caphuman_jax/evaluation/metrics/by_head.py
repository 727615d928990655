"""A short summary for each requested head."""

from __future__ import annotations

import dataclasses

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import (
    Metric,
    Run,
    columns,
    different_people,
    mean,
    share,
)
from caphuman_jax.evaluation.metrics.expression import smile_and_jaw
from caphuman_jax.evaluation.metrics.pose import ANGLES


def compute(run: Run) -> dict:
    """by_head.HEAD: face found, AUC, median errors of angles, and means of what was measured."""
    heads = dict.fromkeys(request.head for request in run.requests)
    return {"by_head": {head: _summary(run, head) for head in heads}}


def _summary(run: Run, head: str) -> dict:
    outcomes = [o for o in run.outcomes if o.request is not None and o.request.head == head]
    part = dataclasses.replace(run, outcomes=outcomes)
    person = part.person
    references = np.stack([s.vectors["dlib"] for s in run.subjects])
    measured = [o.measured.head for o in outcomes]
    smile, jaw = smile_and_jaw(run.model, np.stack([m.expression for m in measured]))
    vectors = np.stack([o.measured.vectors["dlib"] for o in outcomes])
    distance = np.linalg.norm(vectors[:, None] - references, axis=-1)
    wins, possible = estimators.people_auc(distance, person, different_people(run.subjects)[person])
    return {
        "pictures": len(outcomes),
        "face_found": float(np.mean([o.measured.faces > 0 for o in outcomes])),
        "auc": share(wins, possible),
        **{
            f"{name}_median": estimators.median_error(*columns(part, "angles", i)[:2])
            for i, name in enumerate(ANGLES)
        },
        **{
            f"{name}_measured": mean(np.array([m.angles[i] for m in measured]))
            for i, name in enumerate(ANGLES)
        },
        "smile_measured": mean(smile),
        "jawOpen_measured": mean(jaw),
        "light_right_measured": mean(np.array([m.light[0] for m in measured])),
    }


METRIC = Metric(compute, requests_only=True, order=99)
