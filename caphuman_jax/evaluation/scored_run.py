"""Reads a folder of `caphuman evaluate`: the scores of each picture, and the summary.

`scores.jsonl` has one object a line and a picture: id, person, prompt, head (as it was requested),
asked (yaw, pitch, roll … of the requested head), seed, file, references, head_file (a render of the
requested head), faces and scores ({measure: number or null}). `summary.json` has measures, a list
with the fields of `MeasureSummary`. Nothing here depends on which measures there are.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.errors import DataError
from caphuman_jax.io import json_reader
from caphuman_jax.io.files import valid_text

SCORES, SUMMARY = "scores.jsonl", "summary.json"
UP, DOWN = "up", "down"
_MAX_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True)
class MeasureSummary:
    """What a run measured, over all of its pictures.

    Attributes:
        name: of its entry in each picture's scores.
        title: in words, without the unit.
        unit: "degrees", "share" (0 to 1), "" for a plain number, or another one.
        direction: "up" where more is better, "down" where less is; "" where neither is.
        chance: its value for pictures that are assigned to the requests at random.
        floor: its value for the reference photos themselves, the error of the measurement.
        copy: its value for a model that keeps the photo's head.
        value: over the run.
        interval: 95 %, over people.
        people, pictures: that it was measured on.
        source: what measures it.
        definition: in a sentence.
        needs: what the user gives for it to be measured; "": nothing.
    """

    name: str
    title: str
    unit: str = ""
    direction: str = ""
    chance: float = math.nan
    floor: float = math.nan
    copy: float = math.nan
    value: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    people: int = 0
    pictures: int = 0
    source: str = ""
    definition: str = ""
    needs: str = ""

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is, 0 where neither is."""
        return {UP: 1, DOWN: -1}.get(self.direction, 0)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A picture of a run; see the module."""

    id: str
    person: str
    prompt: str
    head: str
    asked: Mapping[str, float]
    seed: int | None
    file: str
    references: tuple[str, ...]
    head_file: str
    faces: int | None
    scores: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredRun:
    """A run: its folder, a name to show, the measures, the pictures, the settings, and the model's
    name and checksum, "" where they are unknown.
    """

    folder: Path
    name: str
    measures: tuple[MeasureSummary, ...]
    pictures: Sequence[Scored]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model: str = ""
    sha256: str = ""

    def values(self, name: str) -> np.ndarray:
        """(N,) of a measure for each picture; NaN where there is none."""
        return np.array([_number(one.scores.get(name)) for one in self.pictures], np.float64)

    @cached_property
    def people(self) -> list[str]:
        """Names of the people, in the order of their pictures."""
        return list(dict.fromkeys(one.person for one in self.pictures))


def distinct_scores(runs: Sequence[ScoredRun]) -> tuple[list[MeasureSummary], dict[str, int]]:
    """The measures with scores of single pictures in all runs, each kind of score once: a median
    and a mean of the same errors have the same scores.

    Returns:
        The measures, with the words that their titles begin with where several have the same
        scores; and the number among them of every measure of the first run that has scores.
    """
    known = [{one.name for one in run.measures} for run in runs]
    groups: dict[tuple[bytes, ...], list[MeasureSummary]] = {}
    for measure in runs[0].measures:
        scores = [run.values(measure.name) for run in runs]
        if all(measure.name in names for names in known) and all(
            np.isfinite(one).any() for one in scores
        ):
            groups.setdefault(tuple(one.tobytes() for one in scores), []).append(measure)
    measures = [
        dataclasses.replace(same[0], title=_beginning([one.title for one in same]))
        for same in groups.values()
    ]
    return measures, {one.name: i for i, same in enumerate(groups.values()) for one in same}


def read_run(folder: Path, name: str | None = None) -> ScoredRun:
    """The run in a folder.

    Args:
        folder: of `caphuman evaluate`.
        name: to show; None: the folder's.

    Raises:
        DataError: the folder is not a finished run, or a file is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory; give a report of caphuman evaluate")
    missing = [file for file in (SCORES, SUMMARY) if not (folder / file).is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {' and '.join(missing)}: it is not a finished report of caphuman "
            f"evaluate"
        )
    try:
        summary = json_reader.read(folder / SUMMARY)
    except json_reader.JsonError as error:
        raise DataError(f"{folder / SUMMARY} is damaged: {error}") from error
    try:
        measures = tuple(map(_measure, summary["measures"]))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{folder / SUMMARY} is not a summary of caphuman evaluate") from error
    pictures = _pictures(folder / SCORES)
    if not pictures:
        raise DataError(f"{folder / SCORES} has no pictures")
    settings, model = summary.get("settings"), summary.get("model")
    known = model if isinstance(model, Mapping) else {}
    return ScoredRun(
        folder,
        valid_text(name or folder.resolve().name),
        measures,
        pictures,
        settings if isinstance(settings, Mapping) else {},
        *(str(known.get(name) or "") for name in ("name", "sha256")),
    )


def _pictures(path: Path) -> list[Scored]:
    pictures = []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                pictures.append(_scored(json_reader.parse(line)))
            except (
                json_reader.JsonError,
                TypeError,
                KeyError,
                AttributeError,
                ValueError,
            ) as error:
                raise DataError(
                    f"{path}, line {number} is damaged; evaluate again to replace it"
                ) from error
    return pictures


def _scored(entry: Mapping[str, Any]) -> Scored:
    return Scored(
        str(entry["id"]),
        str(entry["person"]),
        str(entry["prompt"]),
        str(entry.get("head") or ""),
        {key: v for key, v in (entry.get("asked") or {}).items() if isinstance(v, (int, float))},
        entry.get("seed"),
        str(entry.get("file") or ""),
        tuple(map(str, entry.get("references") or ())),
        str(entry.get("head_file") or ""),
        entry.get("faces"),
        entry["scores"],
    )


def _measure(entry: Mapping[str, Any]) -> MeasureSummary:
    number = lambda field: _number(entry.get(field))
    text = lambda field: str(entry.get(field) or "")
    title, unit = text("title") or str(entry["name"]), text("unit")
    return MeasureSummary(
        str(entry["name"]),
        title.removesuffix(f", {unit}"),
        unit,
        text("direction"),
        number("chance"),
        number("floor"),
        number("copy"),
        number("value"),
        (number("low"), number("high")),
        int(entry.get("people") or 0),
        int(entry.get("pictures") or 0),
        text("source"),
        text("definition"),
        text("needs"),
    )


def _beginning(titles: Sequence[str]) -> str:
    """The whole phrases that all titles begin with, or the first title."""
    common = os.path.commonprefix(titles)
    return titles[0] if common == titles[0] else common.rpartition(",")[0].strip() or titles[0]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
