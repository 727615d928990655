"""Whether pictures show a face of the training data rather than the reference person."""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, averaged, unit

_AT_A_TIME = 4096


def nearest(vectors: np.ndarray, training: np.ndarray) -> np.ndarray:
    """(N,) largest cosine of each of (N, D) to any of (M, D); NaN rows stay NaN."""
    vectors, training = unit(vectors.astype(np.float32)), unit(training.astype(np.float32))
    best = np.full(len(vectors), -np.inf)
    for start in range(0, len(training), _AT_A_TIME):
        best = np.maximum(best, (vectors @ training[start : start + _AT_A_TIME].T).max(axis=1))
    return best


def score(run: Run) -> np.ndarray:
    """(N,) 1 where a face of training is nearer than the own reference photo, otherwise 0."""
    if run.training is None:
        return np.full(len(run.outcomes), np.nan)
    known = [s.vectors["mobilefacenet"] for s in run.subjects]
    own = np.stack([known[o.person] for o in run.outcomes])
    made = np.stack([o.measured.vectors["mobilefacenet"] for o in run.outcomes])
    cosine = (unit(made) * unit(own)).sum(axis=1)
    closer = nearest(made, run.training) > cosine
    return np.where(np.isfinite(cosine), closer, np.nan)


def compute(run: Run) -> dict:
    """memorization, where the faces of training are known."""
    return {} if run.training is None else {"memorization": averaged(run, score, every=30)}


METRIC = Metric(
    compute,
    measures=(
        Measure(
            "memorization",
            "nearer to a face of training than to the reference",
            "memorization",
            "down",
            "Share of the pictures whose face is more like some photo of the training data than "
            "like its own reference photo, by cosine.",
            "MobileFaceNet (Chen et al., 2018)",
            "share",
            score,
        ),
    ),
    requests_only=True,
    order=90,
)
