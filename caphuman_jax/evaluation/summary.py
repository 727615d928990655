"""What a run folder says to other programs: scores.jsonl, one line for each picture, and
summary.json, one entry for each measure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.evaluation.metrics.base import Measure, Run
from caphuman_jax.evaluation.metrics.registry import MEASURES
from caphuman_jax.evaluation.outcome import RECOGNIZERS, HeadParams
from caphuman_jax.evaluation.report import without_nan
from caphuman_jax.head.base import HeadModel
from caphuman_jax.io import atomic, metadata
from caphuman_jax.io.images import write_png

SCORES, SUMMARY, PEOPLE = "scores.jsonl", "summary.json", "people"
FORMAT, FORMAT_VERSION = "caphuman_jax evaluation summary", 1


def write(
    folder: Path,
    run: Run,
    results: Mapping[str, Any],
    floor: Mapping[str, Any],
    facts: Mapping[str, Any],
    heads: Sequence[str] = (),
) -> None:
    """Write scores.jsonl, summary.json and the reference photos, people/NNNNN.png.

    Args:
        folder: of the report.
        run: outcomes of requests.
        results: of the run, see `statistics.compute`.
        floor: those of the measurement floor, or {}.
        facts: what else the summary says of the run, JSON types.
        heads: files with a render of the head that each outcome's request asked for, relative to
            the folder, or none.
    """
    (folder / PEOPLE).mkdir(exist_ok=True)
    for i, subject in enumerate(run.subjects):
        write_png(folder / reference_file(i), subject.picture, metadata.metadata())
    scores = scores_of(run)
    shown = heads or [None] * len(run.outcomes)
    entries = (line | {"head_file": head} for line, head in zip(score_lines(run, scores), shown))
    lines = (json.dumps(without_nan(line)) + "\n" for line in entries)
    atomic.write_text(folder / SCORES, "".join(lines))
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **facts,
        "people": len(np.unique(run.person)),
        "pictures": len(run.outcomes),
        "measures": summarize(run, scores, results, floor),
    }
    atomic.write_text(folder / SUMMARY, json.dumps(without_nan(document), indent=1) + "\n")


def reference_file(person: int) -> str:
    """The reference photo of a subject, relative to the report."""
    return f"{PEOPLE}/{person:05d}.png"


def scores_of(run: Run) -> dict[str, np.ndarray]:
    """{measure: (N,) number of each outcome, NaN where it has none}."""
    nothing = np.full(len(run.outcomes), np.nan)
    return {
        measure.name: nothing if measure.score is None else np.asarray(measure.score(run), float)
        for measure in MEASURES
    }


def summarize(
    run: Run,
    scores: Mapping[str, np.ndarray],
    results: Mapping[str, Any],
    floor: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """An entry for each measure that the results have, JSON types with NaN."""
    lines = []
    for measure in MEASURES:
        entry = entry_at(results, measure.place)
        if entry is None:
            continue
        counted = _counted(run, measure, scores[measure.name])
        low, high = entry.get("interval") or (float("nan"),) * 2
        measured = entry_at(floor, measure.place.replace(".changed.", ".all.")) or {}
        lines.append(
            {
                "name": measure.name,
                "title": measure.title,
                "unit": measure.unit,
                "direction": measure.direction,
                "value": entry["value"],
                "low": low,
                "high": high,
                "chance": entry.get("chance", float("nan")),
                "floor": measured.get("value", float("nan")),
                "copy": entry.get("copied", float("nan")),
                "people": len(np.unique(run.person[counted])),
                "pictures": int(counted.sum()),
                "definition": measure.definition,
                "source": measure.source,
                "needs": measure.needs,
            }
        )
    return lines


def score_lines(run: Run, scores: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A line for each outcome of a request, JSON types with NaN.

    id, person (name of the photo), prompt, head (as it was requested), seed, file and references
    (relative to the report), faces, asked and measured (heads in numbers), distance (of recognition
    vectors from the reference's), and scores: {measure: number}.
    """
    lines = []
    for i, outcome in enumerate(run.outcomes):
        request, found = outcome.request, outcome.measured.faces > 0
        assert request is not None, "the measurement floor has no lines"
        own, vectors = run.subjects[outcome.person].vectors, outcome.measured.vectors
        lines.append(
            {
                "id": f"{request.number:06d}",
                "person": run.subjects[outcome.person].name,
                "prompt": request.prompt,
                "head": request.head,
                "seed": request.seed,
                "file": outcome.file,
                "references": [reference_file(outcome.person)],
                "faces": outcome.measured.faces,
                "asked": head_line(run.model, outcome.asked),
                "measured": head_line(run.model, outcome.measured.head) if found else None,
                "distance": {
                    name: rounded(float(np.linalg.norm(vectors[name] - own[name])))
                    for name in RECOGNIZERS
                }
                if found
                else None,
                "scores": {name: rounded(values[i]) for name, values in scores.items()},
            }
        )
    return lines


def head_line(model: HeadModel, numbers: HeadParams) -> dict[str, Any]:
    """HeadParams as JSON types, without expression weights below 0.005."""
    yaw, pitch, roll = map(rounded, numbers.angles)
    weights = zip(model.expression_names, numbers.expression)
    return {
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "position": list(map(rounded, numbers.position)),
        "light": list(map(rounded, numbers.light)),
        "expression": {name: rounded(w) for name, w in weights if abs(w) > 0.005},
    }


def entry_at(results: Mapping[str, Any], place: str) -> Mapping[str, Any] | None:
    """The entry at names joined by dots, if there is one."""
    found: Any = results
    for name in place.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) and "value" in found else None


def _counted(run: Run, measure: Measure, scores: np.ndarray) -> np.ndarray:
    if measure.counts is not None:
        return measure.counts(run)
    if measure.score is not None:
        return np.isfinite(scores)
    return np.array([outcome.measured.faces > 0 for outcome in run.outcomes])


def rounded(value: float) -> float:
    """With four decimals."""
    return round(float(value), 4)
