"""Errors and correlations of expression weights."""

from __future__ import annotations

import functools

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import (
    CHANGED,
    Goal,
    Measure,
    Metric,
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


def _weights(run: Run, name: str) -> list[np.ndarray]:
    """Requested, measured and own weights (N,) of "smile" or "jawOpen"."""
    found = [smile_and_jaw(run.model, table) for table in tables(run, "expression")]
    return [smile.mean(axis=1) if name == "smile" else jaw for smile, jaw in found]


def _error(run: Run, name: str) -> np.ndarray:
    asked, measured, own = _weights(run, name)
    return np.where(np.abs(asked - own) > CHANGED["expression"], np.abs(measured - asked), np.nan)


def _error_together(run: Run) -> np.ndarray:
    asked, measured, own = tables(run, "expression")
    error = np.abs(measured - asked).mean(axis=1)
    return np.where(differs("expression", asked, own), error, np.nan)


def _measures():
    source = "MediaPipe's 52 blendshape weights, ARKit's names"
    for name in ("smile", "jawOpen"):
        place = f"expression.{name}."
        short = name.removesuffix("Open")
        asked = f"of the measured with the requested weight of {name}"
        error = functools.partial(_error, name=name)
        changed = lambda run, error=error: np.isfinite(error(run))
        yield Measure(
            f"{short}-changed-correlation",
            f"{name} where changed, correlation",
            place + "changed.correlation",
            "up",
            f"Correlation {asked}, over the requests that change it.",
            source,
            counts=changed,
        )
        yield Measure(
            f"{short}-changed-error",
            f"{name} where changed, mean error",
            place + "changed.mean",
            "down",
            f"Mean absolute difference {asked}, over the requests that change it.",
            source,
            score=error,
        )
        yield Measure(
            f"{short}-correlation",
            f"{name} of all heads, correlation",
            place + "all.correlation",
            "up",
            f"Correlation {asked}, over all requests.",
            source,
        )
    together = "expression.together.changed."
    yield Measure(
        "expression-changed-correlation",
        "all expression weights where changed, correlation",
        together + "correlation",
        "up",
        "Correlation of all measured with all requested weights, over the requests that change "
        "any.",
        source,
        counts=lambda run: np.isfinite(_error_together(run)),
    )
    yield Measure(
        "expression-changed-error",
        "all expression weights where changed, mean error",
        together + "mean",
        "down",
        "Mean absolute difference of all measured and requested weights, over the requests that "
        "change any.",
        source,
        score=_error_together,
    )


METRIC = Metric(
    compute,
    measures=tuple(_measures()),
    order=40,
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
