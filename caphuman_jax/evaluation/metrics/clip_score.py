"""How well pictures and prompts agree by CLIP, where there is one with its two projections."""

from __future__ import annotations

from typing import Any

import numpy as np

from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, averaged

VALUE = "clip"
"""Name of a picture's unit vector in `ImageMeasurement.values`."""


def score(run: Run) -> np.ndarray:
    """(N,) 100 · max(cosine of picture and prompt, 0); NaN without a CLIP."""
    return np.array(
        [
            np.nan if vector is None else 100 * max(float(vector @ run.texts[prompt]), 0.0)
            for vector, prompt in _pairs(run)
        ]
    )


def accuracy(run: Run) -> np.ndarray:
    """(N,) 1 where no other prompt of the run is nearer to the picture than its own, 0 where one
    is; NaN without a CLIP, and where all prompts are equal.
    """
    prompts = sorted({prompt for vector, prompt in _pairs(run) if vector is not None})
    if len(prompts) < 2:
        return np.full(len(run.outcomes), np.nan)
    texts = np.stack([run.texts[prompt] for prompt in prompts])
    return np.array(
        [
            np.nan if vector is None else float(prompts[int((texts @ vector).argmax())] == prompt)
            for vector, prompt in _pairs(run)
        ]
    )


def compute(run: Run) -> dict[str, Any]:
    """clip.{score, accuracy}; their values are NaN without a CLIP."""
    if not run.texts:
        missing = {"value": float("nan")}
        return {"clip": {"score": missing, "accuracy": missing}}
    return {"clip": {"score": averaged(run, score), "accuracy": averaged(run, accuracy)}}


def _pairs(run: Run) -> list[tuple[np.ndarray | None, str]]:
    """(a picture's vector or None, its prompt)."""
    pairs = []
    for outcome in run.outcomes:
        prompt = outcome.request.prompt if outcome.request else ""
        vector = outcome.measured.values.get(VALUE)
        pairs.append((vector if prompt in run.texts else None, prompt))
    return pairs


_NEEDS = "a CLIP with its projections: --clip DIR, or a model folder that was imported with --clip"
METRIC = Metric(
    compute,
    measures=(
        Measure(
            "clip-score",
            "CLIP score",
            "clip.score",
            "up",
            "100 times the cosine of the picture's and the prompt's vectors, not below 0.",
            "CLIPScore (Hessel et al., 2021) without its factor 2.5, on the CLIP of the run",
            score=score,
            needs=_NEEDS,
        ),
        Measure(
            "clip-prompt-accuracy",
            "prompt accuracy (CLIP)",
            "clip.accuracy",
            "up",
            "Share of the pictures that are nearer to their own prompt than to every other prompt "
            "of the run.",
            "zero-shot classification by the CLIP of the run (Radford et al., 2021)",
            "share",
            accuracy,
            needs=_NEEDS,
        ),
    ),
    requests_only=True,
    order=73,
)
