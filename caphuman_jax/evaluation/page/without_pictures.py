"""Runs without what shows or names a person, for pages that are published."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from caphuman_jax.evaluation.comparison import Comparison, other_settings
from caphuman_jax.evaluation.scored_run import ScoredRun


def of_run(run: ScoredRun) -> ScoredRun:
    """The run with numbers instead of the names of photos, without files of pictures, and with the
    model's own name and only the last part of other paths. Prompts, heads and scores stay.
    """
    width = len(str(len(run.people)))
    numbers = {name: f"person-{i:0{width}d}" for i, name in enumerate(run.people, 1)}
    pictures = [
        dataclasses.replace(one, person=numbers[one.person], file="", references=(), head_file="")
        for one in run.pictures
    ]
    settings = {name: _last_part(value) for name, value in run.settings.items()}
    if run.model:
        settings["model"] = run.model
    return dataclasses.replace(
        run, folder=Path(run.folder.name), pictures=pictures, settings=settings
    )


def of_comparison(found: Comparison) -> Comparison:
    """The comparison of such runs; a person has the same number in all of them."""
    runs = tuple(map(of_run, found.runs))
    return dataclasses.replace(found, runs=runs, settings=other_settings(runs))


def _last_part(value: Any) -> Any:
    """The last part of a path; another value as it is."""
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value
