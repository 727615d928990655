"""How often an image shows a face, or more than one."""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import Goal, Metric, Row, Run


def compute(run: Run) -> dict:
    """face_found and more_than_one_face, shares in [0, 1]."""
    found = np.array([float(o.measured.faces > 0) for o in run.outcomes])
    return {
        "face_found": {
            "value": float(found.mean()),
            "interval": estimators.interval(np.mean, [found], run.person, run.seed),
        },
        "more_than_one_face": float(np.mean([o.measured.faces > 1 for o in run.outcomes])),
    }


METRIC = Metric(
    compute,
    rows=(Row("face found", "face_found", percent=True),),
    goals=(Goal("face found", "face_found.value", ">=", 0.97, "pictures"),),
    previews={"face_found": "face_found.value"},
)
