"""Where the eyes look, against where they were requested to look."""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, averaged, median, tables
from caphuman_jax.head.base import HeadModel

_LOOKS = tuple(
    f"eyeLook{way}{side}" for way in ("In", "Out", "Up", "Down") for side in ("Left", "Right")
)
# To the person's right (the left eye looks in, the right one out), and up.
_AXES = (
    np.array(
        [[1, -1, -1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, -1, -1]],
    )
    / 2
)


def directions(model: HeadModel, expressions: np.ndarray) -> np.ndarray:
    """(N, 2) gaze to the person's right and up, each in [-1, 1], of expressions (N, E); NaN for a
    head model without eyes that look.
    """
    return model.arkit_weights(_LOOKS, expressions) @ _AXES.T


def score(run: Run) -> np.ndarray:
    """(N,) distance of the measured from the requested direction."""
    asked, measured, _ = (directions(run.model, table) for table in tables(run, "expression"))
    return np.linalg.norm(measured - asked, axis=1)


def compute(run: Run) -> dict:
    """gaze."""
    return {"gaze": averaged(run, score, median)}


METRIC = Metric(
    compute,
    measures=(
        Measure(
            "gaze",
            "gaze, median error",
            "gaze",
            "down",
            "Median distance of the measured from the requested direction of the eyes, to the "
            "right and up in weights of eyeLookIn, Out, Up and Down (1: as far as eyes can look).",
            "MediaPipe's 52 blendshape weights, ARKit's names",
            score=score,
        ),
    ),
    order=45,
)
