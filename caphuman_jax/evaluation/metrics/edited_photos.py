"""Edited photos: what changed outside of the mask, the mask's edge, and what is left of the photo's
own smile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from caphuman_jax.evaluation import estimators
from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, mean, median
from caphuman_jax.evaluation.metrics.expression import smile_and_jaw
from caphuman_jax.evaluation.outcome import Outcome

OUTSIDE, SEAM = "changed-outside", "seam"
_CHANGED = 0.2  # weight of an expression


def value(run: Run, name: str) -> np.ndarray:
    """(N,) a number that was found when the picture was compared with its photo; NaN of others."""
    found = [outcome.measured.values.get(name) for outcome in run.outcomes]
    return np.array([np.nan if one is None else float(one) for one in found])


def copied(asked: np.ndarray, measured: np.ndarray, own: np.ndarray) -> float:
    """How much of the photo's expression is left where another was asked for: the median over the
    edits of (measured − asked) / (own − asked). 0: it is the one asked for; 1: it is the photo's.

    Args:
        asked, measured, own: (N,) weights of an expression; edits that change it by less than
            `_CHANGED` do not count.
    """
    counts = (np.abs(own - asked) >= _CHANGED) & np.isfinite(measured)
    left = (measured - asked)[counts] / (own - asked)[counts]
    return float(np.median(left)) if len(left) else float("nan")


def compute(run: Run) -> dict[str, Any]:
    """edit: number of edits; yaw, pitch: median errors in degrees; copied_smile, see `copied`;
    changed_outside: the most pixels that any edit changed outside its mask; seam, median. And
    edit_traces.{outside, seam} with intervals. {} where no photo was edited.
    """
    edited = [o for o in run.outcomes if SEAM in o.measured.values]
    if not edited:
        return {}
    smiles = [_smile(run, edited, part) for part in ("asked", "measured", "own")]
    return {
        "edit": {
            "edits": len(edited),
            "yaw": _error(edited, 0),
            "pitch": _error(edited, 1),
            "copied_smile": copied(*smiles),
            "changed_outside": int(np.nanmax(value(run, OUTSIDE))),
            "seam": median(value(run, SEAM)),
        },
        "edit_traces": {
            "outside": _trace(run, OUTSIDE, mean, 0.0),
            "seam": _trace(run, SEAM, median, 1.0),
        },
    }


def _trace(
    run: Run, name: str, statistic: Callable[[np.ndarray], float], copied: float
) -> dict[str, Any]:
    values = value(run, name)
    return {
        "value": statistic(values),
        "interval": estimators.interval(statistic, [values], run.person, run.seed),
        "copied": copied,  # a photo that stays as it is
    }


def _error(edited: list[Outcome], angle: int) -> float:
    difference = [o.asked.angles[angle] - o.measured.head.angles[angle] for o in edited]
    return median(np.abs(np.array(difference)))


def _smile(run: Run, edited: list[Outcome], part: str) -> np.ndarray:
    heads = {
        "asked": lambda o: o.asked,
        "measured": lambda o: o.measured.head,
        "own": lambda o: o.own,
    }
    return smile_and_jaw(run.model, np.stack([heads[part](o).expression for o in edited]))[0].mean(
        axis=1
    )


METRIC = Metric(
    compute,
    measures=(
        Measure(
            OUTSIDE,
            "pixels changed outside the mask",
            "edit_traces.outside",
            "down",
            "Mean number of the photo's pixels that differ where the mask does not reach.",
            "comparison of the photo before and after",
            score=functools.partial(value, name=OUTSIDE),
        ),
        Measure(
            SEAM,
            "visibility of the mask's edge",
            "edit_traces.seam",
            "down",
            "Median of the change of brightness across the mask's edge, over that of the photo "
            "there; 1 for an edge that cannot be seen.",
            "gradients of the gray picture across the mask's edge",
            score=functools.partial(value, name=SEAM),
        ),
    ),
    requests_only=True,
    order=90,
)
