"""Where the head is in the image, and how large."""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import (
    Measure,
    Metric,
    Run,
    all_and_changed,
    differs,
    tables,
)


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


def _place(run: Run) -> np.ndarray:
    asked, measured, own = tables(run, "position")
    distance = np.linalg.norm(measured[:, :2] - asked[:, :2], axis=1)
    return np.where(differs("position", asked, own), distance, np.nan)


def _size(run: Run) -> np.ndarray:
    asked, measured, own = tables(run, "position")
    error = np.abs(np.log(measured[:, 2] / asked[:, 2]))
    return np.where(differs("position", asked, own), error, np.nan)


_SOURCE = "the head that conditions the model, estimated again in the picture"
METRIC = Metric(
    compute,
    measures=(
        Measure(
            "place-changed",
            "position where changed, median distance in parts of the side",
            "position.changed.median_distance",
            "down",
            "Median distance of the head's middle from where it was requested, over the requests "
            "that change place or size.",
            _SOURCE,
            score=_place,
        ),
        Measure(
            "size-changed",
            "size where changed, median error (natural logarithm)",
            "position.changed.median_log_size_error",
            "down",
            "Median absolute logarithm of the head's size over the requested size, over the "
            "requests that change place or size.",
            _SOURCE,
            score=_size,
        ),
    ),
    order=60,
)
