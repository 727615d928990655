"""How much pictures of the same request differ with their seeds."""

from __future__ import annotations

import collections

import cv2
import numpy as np

from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, Shown, averaged

_SIDE = 16


def thumbnail(shown: Shown) -> np.ndarray:
    """(16, 16, 3) uint8."""
    return cv2.resize(shown.image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


def score(run: Run) -> np.ndarray:
    """(N,) mean distance of a picture to the others of its person, head and prompt: root mean
    square of the thumbnails' differences, colors in 0 to 1. NaN for the only one.
    """
    groups = collections.defaultdict(list)
    for i, outcome in enumerate(run.outcomes):
        request = outcome.request
        if request and request.head != "random" and "thumbnail" in outcome.measured.values:
            groups[request.person, request.head, request.prompt].append(i)
    answer = np.full(len(run.outcomes), np.nan)
    for members in groups.values():
        if len(members) < 2:
            continue
        images = [run.outcomes[i].measured.values["thumbnail"] for i in members]
        flat = np.stack(images).reshape(len(members), -1).astype(np.float64) / 255
        distance = np.sqrt(((flat[:, None] - flat) ** 2).mean(axis=-1))
        answer[members] = distance.sum(axis=1) / (len(members) - 1)
    return answer


def compute(run: Run) -> dict:
    """diversity, where a request has several seeds."""
    return {"diversity": averaged(run, score)} if np.isfinite(score(run)).any() else {}


METRIC = Metric(
    compute,
    measures=(
        Measure(
            "diversity",
            "diversity over seeds",
            "diversity",
            "up",
            "Mean distance between pictures of one request that differ in their seeds alone: root "
            f"mean square over thumbnails of {_SIDE} pixels, colors in 0 to 1.",
            "plain pixels",
            score=score,
        ),
    ),
    requests_only=True,
    reads={"thumbnail": thumbnail},
    order=85,
)
