"""How much of the reference photo's expression is left where another one was requested."""

from __future__ import annotations

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import (
    CHANGED,
    Measure,
    Metric,
    Run,
    all_and_changed,
    differs,
    tables,
)


def compute(run: Run) -> dict:
    """copied_expression.changed.correlation: of measured and own weights."""
    asked, measured, own = tables(run, "expression")
    changed = differs("expression", asked, own)
    # The own expression takes the place of the requested one; a copy has it exactly.
    correlated = {"correlation": estimators.correlation}
    found = all_and_changed(correlated, own, measured, own, changed, run.person, run.seed)
    return {"copied_expression": {"changed": found["changed"]}}


def _counts(run: Run) -> np.ndarray:
    asked, measured, own = tables(run, "expression")
    return differs("expression", asked, own) & np.isfinite(measured).all(axis=1)


METRIC = Metric(
    compute,
    measures=(
        Measure(
            "copied-expression",
            "copied expression where another was asked for, correlation",
            "copied_expression.changed.correlation",
            "down",
            "Correlation of all measured weights with those of the reference photo, over the "
            f"requests that change any by more than {CHANGED['expression']:g}. Expressions are "
            "alike to some degree: the chance level says to which.",
            "MediaPipe's 52 blendshape weights, ARKit's names",
            counts=_counts,
        ),
    ),
    requests_only=True,
    order=42,
)
