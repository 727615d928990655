"""How much fine detail the face has, against the reference photo."""

from __future__ import annotations

import cv2
import numpy as np

from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, Shown, averaged, median

_SIDE = 128  # pixels of the face that is compared


def sharpness(shown: Shown) -> float:
    """Standard deviation of the Laplacian of the face's lightness (0 to 255) at 128 x 128; NaN
    without a face.
    """
    if shown.landmarks is None:
        return float("nan")
    points, side = shown.landmarks[:, :2], len(shown.image)
    low = np.clip(np.floor(points.min(axis=0)).astype(int), 0, side - 2)
    high = np.clip(np.ceil(points.max(axis=0)).astype(int), low + 2, side)
    face = cv2.cvtColor(shown.image[low[1] : high[1], low[0] : high[0]], cv2.COLOR_RGB2GRAY)
    face = cv2.resize(face, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(face.astype(np.float32), cv2.CV_32F).std())


def score(run: Run) -> np.ndarray:
    """(N,) detail of the picture over that of the reference photo."""
    ratio = lambda o: (
        o.measured.values.get("sharpness", np.nan)
        / max(run.subjects[o.person].values.get("sharpness", np.nan), 1e-6)
    )
    return np.array([ratio(o) for o in run.outcomes], float)


def compute(run: Run) -> dict:
    """sharpness."""
    return {"sharpness": averaged(run, score, median)}


METRIC = Metric(
    compute,
    measures=(
        Measure(
            "sharpness",
            "sharpness of the face over the reference photo's, median",
            "sharpness",
            "up",
            "Median ratio of the standard deviations of the Laplacian of the faces' lightness, "
            f"both at {_SIDE} pixels; 1 is as sharp as the photo, more may be noise.",
            "variance of the Laplacian (Pech-Pacheco et al., 2000)",
            score=score,
        ),
    ),
    reads={"sharpness": sharpness},
    order=80,
)
