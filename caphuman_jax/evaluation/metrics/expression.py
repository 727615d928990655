"""Errors and correlations of expression weights."""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import (
    Goal,
    Metric,
    Row,
    Run,
    all_and_changed,
    controlled,
    differs,
    tables,
)
from caphuman_jax.head.base import HeadModel

_ARKIT = ("mouthSmileLeft", "mouthSmileRight", "jawOpen")


def smile_and_jaw(model: HeadModel, expressions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smile (N, 2), of both sides, and jawOpen (N,) in expressions (N, E), as ARKit weights; NaN
    for a head model without them.
    """
    weights = model.arkit_weights(_ARKIT, expressions)
    return weights[:, :2], weights[:, 2]


def compute(run: Run) -> dict:
    """expression.smile (mean of its two sides), .jawOpen, and .together: all weights.

    Smile and jaw are NaN for a head model that cannot make them.
    """
    asked, measured, own = tables(run, "expression")
    smile_asked, jaw_asked = smile_and_jaw(run.model, asked)
    smile_measured, jaw_measured = smile_and_jaw(run.model, measured)
    smile_own, jaw_own = smile_and_jaw(run.model, own)
    sides = lambda smile: smile.mean(axis=1)
    together = {"mean": estimators.mean_error, "correlation": estimators.correlation}
    person, seed = run.person, run.seed
    return {
        "expression": {
            "smile": controlled(
                "expression",
                sides(smile_asked),
                sides(smile_measured),
                sides(smile_own),
                person,
                seed,
            ),
            "jawOpen": controlled("expression", jaw_asked, jaw_measured, jaw_own, person, seed),
            "together": all_and_changed(
                together, asked, measured, own, differs("expression", asked, own), person, seed
            ),
        }
    }


def _rows():
    for name in ("smile", "jawOpen"):
        place = f"expression.{name}."
        yield Row(f"{name} where changed, correlation", place + "changed.correlation")
        yield Row(f"{name} where changed, mean error", place + "changed.mean")
        yield Row(f"{name} of all heads, correlation", place + "all.correlation")
    together = "expression.together.changed."
    yield Row("all expression weights where changed, correlation", together + "correlation")
    yield Row("all expression weights where changed, mean error", together + "mean")


METRIC = Metric(
    compute,
    rows=tuple(_rows()),
    # Where the request changes the weight: elsewhere a copy of the photo would do.
    goals=tuple(
        Goal(
            f"{name} correlation",
            f"expression.{name}.changed.correlation.value",
            ">=",
            0.6,
            f"expression.{name}.changed.requests",
        )
        for name in ("smile", "jawOpen")
    ),
    previews={
        "smile_error": "expression.smile.all.median.value",
        "jaw_error": "expression.jawOpen.all.median.value",
    },
)
