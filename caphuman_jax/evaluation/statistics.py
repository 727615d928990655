"""Outcomes to the numbers of the report, as nested dicts of JSON types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caphuman_jax.evaluation.metrics.base import Goal, Run
from caphuman_jax.evaluation.metrics.registry import METRICS
from caphuman_jax.evaluation.outcome import Outcome, Subject
from caphuman_jax.head.base import HeadModel

PREVIEWED = {name: place for metric in METRICS for name, place in metric.previews.items()}
"""Numbers that training reports: {name: place in the results}."""


def compute(
    model: HeadModel, subjects: Sequence[Subject], outcomes: Sequence[Outcome], seed: int = 0
) -> dict:
    """See `compute_run`."""
    return compute_run(Run(model, subjects, outcomes, seed))


def compute_run(run: Run) -> dict:
    """All results of requests' outcomes, or of the measurement floor's; {} without outcomes."""
    if not run.outcomes:
        return {}
    results = {"pictures": len(run.outcomes), "people": len(np.unique(run.person))}
    for metric in METRICS:
        if run.outcomes[0].request is not None or not metric.requests_only:
            results |= metric.compute(run)
    return results


def goals(results: dict, wanted: Sequence[Goal] | None = None) -> dict[str, dict]:
    """{goal: {"value", "goal", "reached", "number", "fewest"}} of some goals, or of all metrics';
    "reached" is None where nothing could be measured, or less often than "fewest".
    """
    answer = {}
    every = [goal for metric in METRICS for goal in metric.goals] if wanted is None else wanted
    for goal in every:
        value = at(results, goal.place)
        reached = value >= goal.value if goal.relation == ">=" else value <= goal.value
        number = at(results, goal.counted)
        answer[goal.label] = {
            "value": value,
            "goal": f"{goal.relation} {goal.value:g}",
            "reached": bool(reached) if np.isfinite(value) and number >= goal.fewest else None,
            "number": number,
            "fewest": goal.fewest,
        }
    return answer


def at(results: Mapping[str, Any], place: str) -> Any:
    """The entry of nested dicts at names joined by dots."""
    found: Any = results
    for name in place.split("."):
        found = found[name]
    return found
