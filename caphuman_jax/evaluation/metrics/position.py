"""Where the head is in the image, and how large."""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import Metric, Row, Run, all_and_changed, differs, tables


def compute(run: Run) -> dict:
    """position: distance of the head's middle as a fraction of the image's side, and the natural
    logarithm of its size over the requested one.
    """
    asked, measured, own = tables(run, "position")
    distance = lambda a, m: estimators.median_error(
        np.zeros(len(a)), np.linalg.norm(m[:, :2] - a[:, :2], axis=1)
    )
    size = lambda a, m: estimators.median_error(np.zeros(len(a)), np.log(m[:, 2] / a[:, 2]))
    statistics = {"median_distance": distance, "median_log_size_error": size}
    changed = differs("position", asked, own)
    return {
        "position": all_and_changed(statistics, asked, measured, own, changed, run.person, run.seed)
    }


METRIC = Metric(
    compute,
    rows=(
        Row(
            "position where changed, median distance in parts of the side",
            "position.changed.median_distance",
        ),
        Row(
            "size where changed, median error (natural logarithm)",
            "position.changed.median_log_size_error",
        ),
    ),
)
