"""Errors of yaw, pitch and roll."""

from __future__ import annotations

import dataclasses

import numpy as np

from caphuman_jax.evaluation.metrics.base import Goal, Metric, Row, Run, columns, controlled

ANGLES = ("yaw", "pitch", "roll")
WITHIN = 20.0  # degrees: heads that are turned further about any axis are left out


def compute(run: Run) -> dict:
    """pose.ANGLE: in degrees, over results with a face and requested heads within WITHIN degrees
    about every axis.
    """
    kept = [o for o in run.outcomes if np.abs(o.asked.angles).max() <= WITHIN]
    answer: dict = {"requests": len(kept)}
    if not kept:
        nothing = np.zeros(0)
        for name in ANGLES:
            answer[name] = controlled("angles", nothing, nothing, nothing, nothing, run.seed)
        return {"pose": answer}
    part = dataclasses.replace(run, outcomes=kept)
    for i, name in enumerate(ANGLES):
        answer[name] = controlled("angles", *columns(part, "angles", i), part.person, run.seed)
    return {"pose": answer}


def _rows():
    for angle in ANGLES:
        for key, label in (("median", "median"), ("mean", "mean"), ("ninetieth", "90% below")):
            yield Row(
                f"{angle} error where changed, {label}, degrees", f"pose.{angle}.changed.{key}"
            )
        yield Row(f"{angle} error of all heads, median, degrees", f"pose.{angle}.all.median")


METRIC = Metric(
    compute,
    rows=tuple(_rows()),
    # Where the request changes the angle: elsewhere a copy of the photo would do.
    goals=tuple(
        Goal(
            f"median {angle} error, degrees",
            f"pose.{angle}.changed.median.value",
            "<=",
            most,
            f"pose.{angle}.changed.requests",
        )
        for angle, most in (("yaw", 4.0), ("pitch", 4.0), ("roll", 2.0))
    ),
    previews={"yaw_error": "pose.yaw.all.median.value"},
)
