"""Errors of yaw, pitch and roll."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from caphuman_jax.evaluation.metrics.base import (
    CHANGED,
    Goal,
    Measure,
    Metric,
    Run,
    averaged,
    columns,
    controlled,
    median,
)

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
    if any(np.isfinite(far_errors(run, i)).any() for i in range(len(ANGLES))):
        answer["far"] = {
            name: averaged(run, functools.partial(far_errors, axis=i), median)
            for i, name in enumerate(ANGLES)
        }
    return {"pose": answer}


def far_errors(run: Run, axis: int) -> np.ndarray:
    """(N,) absolute errors of an angle in degrees where more than WITHIN degrees of it are
    requested, else NaN.
    """
    asked, measured, _ = columns(run, "angles", axis)
    return np.where(np.abs(asked) > WITHIN, np.abs(measured - asked), np.nan)


def errors(run: Run, axis: int, changed: bool) -> np.ndarray:
    """(N,) absolute errors of an angle in degrees, NaN where `compute` leaves the request out."""
    asked, measured, own = columns(run, "angles", axis)
    kept = np.array([np.abs(o.asked.angles).max() <= WITHIN for o in run.outcomes])
    if changed:
        kept &= np.abs(asked - own) > CHANGED["angles"]
    return np.where(kept, np.abs(measured - asked), np.nan)


def _measures():
    source = "the head that conditions the model, estimated again in the picture"
    for i, angle in enumerate(ANGLES):
        for key, label, how in (
            ("median", "median", "Median"),
            ("mean", "mean", "Mean"),
            ("ninetieth", "90% below", "Ninetieth percentile of the"),
        ):
            yield Measure(
                f"{angle}-changed-{key}",
                f"{angle} error where changed, {label}, degrees",
                f"pose.{angle}.changed.{key}",
                "down",
                f"{how} absolute error of {angle} over requests that change it by more than "
                f"{CHANGED['angles']:g}° and stay within ±{WITHIN:g}° about every axis.",
                source,
                "degrees",
                functools.partial(errors, axis=i, changed=True),
            )
        yield Measure(
            f"{angle}-median",
            f"{angle} error of all heads, median, degrees",
            f"pose.{angle}.all.median",
            "down",
            f"Median absolute error of {angle} over all requests within ±{WITHIN:g}° about every "
            "axis.",
            source,
            "degrees",
            functools.partial(errors, axis=i, changed=False),
        )
        yield Measure(
            f"{angle}-far",
            f"{angle} error of heads turned far, median, degrees",
            f"pose.far.{angle}",
            "down",
            f"Median absolute error of {angle} over requests of more than {WITHIN:g}° of it.",
            source,
            "degrees",
            functools.partial(far_errors, axis=i),
        )


METRIC = Metric(
    compute,
    measures=tuple(_measures()),
    order=30,
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
