"""Turns of the head by the geometry of landmarks alone, without the head that conditions."""

from __future__ import annotations

import functools

import numpy as np
from scipy.spatial.transform import Rotation

from caphuman_jax.evaluation.metrics.base import (
    CHANGED,
    Measure,
    Metric,
    Run,
    Shown,
    averaged,
    median,
)
from caphuman_jax.head.angles import angles_of
from caphuman_jax.head.models.registry import load_head

ANGLES = ("yaw", "pitch", "roll")
_RIGID = 0.35  # landmarks that expressions move less than this share of the landmarks' median


@functools.cache
def _template() -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (K, 3) of the mean face that expressions hardly move, x right, y up, z towards the
    viewer, about their mean; and which of the 478 they are.
    """
    model = load_head()
    moved = np.asarray(model.landmarks(model.expression_basis))
    moved = np.linalg.norm(moved, axis=-1).max(axis=0)
    valid = np.asarray(model.landmark_valid)
    rigid = np.flatnonzero(valid & (moved < _RIGID * np.median(moved[valid])))
    points = np.asarray(model.landmarks(model.mean), np.float64)[rigid]
    return points - points.mean(axis=0), rigid


def geometry(shown: Shown) -> np.ndarray:
    """(3,) yaw, pitch, roll in degrees of the rotation that brings the mean face's landmarks to the
    picture's (Kabsch, 1976); NaN without a face.
    """
    if shown.landmarks is None:
        return np.full(3, np.nan)
    template, rigid = _template()
    points = shown.landmarks[rigid].astype(np.float64) * [1, -1, -1]
    rotation, _ = Rotation.align_vectors(points - points.mean(axis=0), template)
    return np.asarray(angles_of(rotation.as_matrix(), np))


def score(run: Run, axis: int) -> np.ndarray:
    """(N,) absolute errors of the turn from the reference photo, in degrees; NaN where none is
    requested.
    """
    answer = np.full(len(run.outcomes), np.nan)
    for i, outcome in enumerate(run.outcomes):
        before = run.subjects[outcome.person].values.get("geometry")
        after = outcome.measured.values.get("geometry")
        turn = outcome.asked.angles[axis] - outcome.own.angles[axis]
        if before is not None and after is not None and abs(turn) > CHANGED["angles"]:
            answer[i] = abs(after[axis] - before[axis] - turn)
    return answer


def compute(run: Run) -> dict:
    """turn_by_geometry.ANGLE, medians."""
    return {
        "turn_by_geometry": {
            name: averaged(run, functools.partial(score, axis=i), median)
            for i, name in enumerate(ANGLES)
        }
    }


METRIC = Metric(
    compute,
    measures=tuple(
        Measure(
            f"{name}-by-geometry",
            f"{name} by landmark geometry where changed, median error, degrees",
            f"turn_by_geometry.{name}",
            "down",
            f"Median absolute error of the change of {name} from reference photo to picture, each "
            "from the rotation of the landmarks that expressions hardly move.",
            "MediaPipe's 478 landmarks; rotation between point sets (Kabsch, 1976)",
            "degrees",
            functools.partial(score, axis=i),
        )
        for i, name in enumerate(ANGLES)
    ),
    reads={"geometry": geometry},
    order=32,
)
