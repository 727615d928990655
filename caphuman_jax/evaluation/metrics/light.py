"""Whether the light comes from where it was requested."""

from __future__ import annotations

import functools

import numpy as np

from caphuman_jax.evaluation.metrics.base import (
    CHANGED,
    Measure,
    Metric,
    Run,
    columns,
    controlled,
)

_AXES = {"right": "the right", "above": "above"}


def compute(run: Run) -> dict:
    """light.right and light.above, see `outcome.light_from`."""
    return {
        "light": {
            axis: controlled("light", *columns(run, "light", i), run.person, run.seed)
            for i, axis in enumerate(_AXES)
        }
    }


def _changed(run: Run, axis: int) -> np.ndarray:
    asked, measured, own = columns(run, "light", axis)
    return (np.abs(asked - own) > CHANGED["light"]) & np.isfinite(measured)


METRIC = Metric(
    compute,
    measures=tuple(
        Measure(
            f"light-{axis}",
            f"light from {side} where changed, correlation",
            f"light.{axis}.changed.correlation",
            "up",
            f"Correlation of the measured with the requested share of light from {side}, over the "
            "requests that change it.",
            "first-order spherical harmonics fitted to the face (Ramamoorthi and Hanrahan, 2001)",
            counts=functools.partial(_changed, axis=i),
        )
        for i, (axis, side) in enumerate(_AXES.items())
    ),
    order=50,
)
