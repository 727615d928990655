"""How often an image shows a face, or more than one."""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import Goal, Measure, Metric, Run


def compute(run: Run) -> dict:
    """face_found and more_than_one_face, shares in [0, 1]."""
    shown = found(run)
    return {
        "face_found": {
            "value": float(shown.mean()),
            "interval": estimators.interval(np.mean, [shown], run.person, run.seed),
        },
        "more_than_one_face": float(np.mean([o.measured.faces > 1 for o in run.outcomes])),
    }


def found(run: Run) -> np.ndarray:
    """(N,) 1 where a face was found, otherwise 0."""
    return np.array([float(o.measured.faces > 0) for o in run.outcomes])


METRIC = Metric(
    compute,
    measures=(
        Measure(
            "face-found",
            "face found",
            "face_found",
            "up",
            "Share of the pictures in which a face is detected.",
            "MediaPipe BlazeFace (short range)",
            "share",
            found,
        ),
    ),
    order=10,
    goals=(Goal("face found", "face_found.value", ">=", 0.97, "pictures"),),
    previews={"face_found": "face_found.value"},
)
