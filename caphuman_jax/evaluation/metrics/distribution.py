"""How far the pictures' faces as a whole are from those of the reference photos.

These are not the FID and KID of the literature, which take Inception's features of whole pictures:
the features here are dlib's vectors of faces, which are shipped.
"""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, copier

_RECOGNIZER = "dlib"
_FEWEST = 10  # faces on each side


def _vectors(run: Run) -> np.ndarray:
    return np.stack([o.measured.vectors[_RECOGNIZER] for o in run.outcomes]).astype(np.float64)


def compute(run: Run) -> dict:
    """distribution.frechet and distribution.kernel, of dlib's vectors.

    Without intervals: people who are drawn twice make both distances larger.
    """
    made, copied = _vectors(run), _vectors(copier(run))
    known = np.stack([s.vectors[_RECOGNIZER] for s in run.subjects]).astype(np.float64)

    def of(distance):
        def statistic(vectors):
            vectors = vectors[np.isfinite(vectors).all(axis=1)]
            return distance(vectors, known) if len(vectors) >= _FEWEST else float("nan")

        return {"value": statistic(made), "copied": statistic(copied)}

    if len(known) < _FEWEST:
        return {}
    return {
        "distribution": {
            "frechet": of(estimators.frechet_distance),
            "kernel": of(estimators.kernel_distance),
        }
    }


_SAME = "of the faces in pictures and reference photos, on dlib's 128-number vectors of faces"
METRIC = Metric(
    compute,
    measures=(
        Measure(
            "frechet-faces",
            "Fréchet distance of face vectors (not FID)",
            "distribution.frechet",
            "down",
            f"Fréchet distance between Gaussians fitted to the vectors {_SAME}.",
            "formula of FID (Heusel et al., 2017) on dlib's face recognition network",
        ),
        Measure(
            "kernel-faces",
            "kernel distance of face vectors (not KID)",
            "distribution.kernel",
            "down",
            f"Unbiased squared maximum mean discrepancy {_SAME}, kernel (x·y/128 + 1)³.",
            "formula of KID (Binkowski et al., 2018) on dlib's face recognition network",
        ),
    ),
    requests_only=True,
    order=88,
)
