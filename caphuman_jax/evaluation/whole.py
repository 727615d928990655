"""Everything that is said about outcomes of requests, from the measurement floor to the report."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caphuman_jax.evaluation import benchmark, report, statistics, summary
from caphuman_jax.evaluation.metrics.base import Run
from caphuman_jax.evaluation.outcome import Outcome, Subject
from caphuman_jax.pipeline.pipeline import Pipeline


def write(
    folder: Path,
    pipe: Pipeline,
    subjects: Sequence[Subject],
    outcomes: Sequence[Outcome],
    facts: Mapping[str, Any],
    *,
    seed: int,
    batch: int,
) -> dict[str, Any]:
    """Write the report of all outcomes. Of several processes one writes at a time, all the same.

    Args:
        folder: of the report.
        pipe: measures the floor.
        subjects: the people.
        outcomes: of their requests.
        facts: what else the report says, JSON types: settings, model, versions, skipped, seconds.
        seed: of what is random.
        batch: pictures measured at a time.

    Returns:
        What report.json says.
    """
    with open(folder / ".report.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        model = pipe.head_model
        floor = benchmark.run_measurement_floor(
            model, subjects, seed=seed, batch=batch, head_of=pipe.head_of
        )
        results = statistics.compute(model, subjects, outcomes, seed)
        measured_floor = statistics.compute(model, subjects, floor, seed)
        document = {
            "format": "caphuman_jax evaluation",
            **facts,
            "goals": statistics.goals(results),
            "results": results,
            "measurement_floor": measured_floor,
            "sheets": report.write_sheets(folder, subjects, outcomes, folder),
        }
        report.write_json(folder / "report.json", document)
        shown = {name: facts[name] for name in ("suite", "model", "settings", "versions")}
        run = Run(model, subjects, outcomes, seed)
        summary.write(folder, run, results, measured_floor, shown)
        report.write_index(folder / "index.md", document)
    return document
