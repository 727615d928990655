"""The report on disk: report.json with every number, index.md to read, and sheets of pictures."""

from __future__ import annotations

import collections
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from caphuman_jax.evaluation.metrics.base import FEWEST
from caphuman_jax.evaluation.metrics.identity import RANKED_AMONG
from caphuman_jax.evaluation.metrics.pose import WITHIN
from caphuman_jax.evaluation.metrics.registry import MEASURES
from caphuman_jax.evaluation.outcome import Outcome, Subject
from caphuman_jax.io import atomic, metadata
from caphuman_jax.io.images import read_photo, write_png

CELL, LABEL = 160, 26  # pixels of one picture on a sheet, and of the two lines under it
PEOPLE_A_SHEET, MOST_OF_A_PERSON = 8, 64


def write_json(path: Path, report: dict) -> None:
    """Write the report; NaN becomes null."""
    atomic.write_text(path, json.dumps(without_nan(report), indent=1) + "\n")


def write_sheets(
    folder: Path, subjects: Sequence[Subject], outcomes: Sequence[Outcome], pictures: Path
) -> list[str]:
    """Write sheets of PEOPLE_A_SHEET people each, one person a row, with the reference photo first;
    at most MOST_OF_A_PERSON pictures of each, evenly chosen. Returns the files' names.
    """
    for old in folder.glob("sheet_[0-9][0-9].png"):
        old.unlink()  # of a report that is overwritten
    names, by_person = [], collections.defaultdict(list)
    for outcome in outcomes:
        by_person[outcome.person].append(outcome)
    for start in range(0, len(subjects), PEOPLE_A_SHEET):
        people = range(start, min(start + PEOPLE_A_SHEET, len(subjects)))
        rows = []
        for person in people:
            mine = by_person[person]
            mine = mine[:: -(-len(mine) // MOST_OF_A_PERSON) or 1]
            rows.append(
                [(subjects[person].picture, "reference", "")]
                + [
                    (read_photo(pictures / o.file), _head_label(o), o.request.prompt)
                    for o in mine
                    if o.file is not None and o.request is not None
                ]
            )
        names.append(f"sheet_{start // PEOPLE_A_SHEET:02d}.png")
        write_png(folder / names[-1], sheet(rows), metadata.metadata())
    return names


def sheet(rows: Sequence[Sequence[tuple[np.ndarray, str, str]]]) -> np.ndarray:
    """One image (H, W, 3) uint8 of rows of (image (…, 3) uint8, line, line)."""
    width = max(len(row) for row in rows)
    page = Image.new("RGB", (width * CELL, len(rows) * (CELL + LABEL)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=10)
    for y, row in enumerate(rows):
        for x, (picture, *lines) in enumerate(row):
            left, top = x * CELL, y * (CELL + LABEL)
            page.paste(
                Image.fromarray(picture).resize((CELL - 2, CELL - 2), Image.Resampling.LANCZOS),
                (left, top),
            )
            for i, text in enumerate(lines):
                draw.text(
                    (left + 2, top + CELL - 1 + 12 * i),
                    _shortened(text, draw, font),
                    fill="black",
                    font=font,
                )
    return np.asarray(page)


def write_index(path: Path, report: dict) -> None:
    """Write index.md: goals, the main numbers with interval, chance and measurement floor, and what
    each of them means.
    """
    results, floor, settings = report["results"], report["measurement_floor"], report["settings"]
    lines = [
        f"# Evaluation of `{settings['model']}`",
        "",
        f"{results['pictures']} pictures of {results['people']} people ({settings['steps']} steps, "
        f"guidance scale {settings['guidance_scale']:g}, seed "
        f"{settings['seed']}); {len(report['skipped'])} photos skipped. Weights: "
        f"`{report['model']['sha256'][:16]}`.",
        "",
        "All numbers: [report.json](report.json); measures with definitions: "
        "[summary.json](summary.json); every picture: [scores.jsonl](scores.jsonl).",
        "",
        "## Goals",
        "",
        "| | reached | goal | |",
        "|---|---|---|---|",
        *(
            f"| {name} | {number(g['value'])} | {g['goal']} | {verdict(g, 'yes', 'no')} |"
            for name, g in report["goals"].items()
        ),
        "",
        "## What was measured",
        "",
        "| | value | 95% interval | chance | copy | floor |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in _main_rows(results, floor)),
        "",
        *_EXPLANATION,
        "",
        "## By head",
        "",
        *_head_table(results["by_head"]),
        "",
        "## Following the prompt",
        "",
        *_prompt_lines(results.get("prompts", {})),
        "",
        "## Time",
        "",
        *(
            f"* {name.replace('_', ' ')}: {number(value)}"
            for name, value in report["seconds"].items()
        ),
        "",
        *(
            ["## Skipped", "", *(f"* {name}: {why}" for name, why in report["skipped"].items()), ""]
            if report["skipped"]
            else []
        ),
        "## Pictures",
        "",
        *(f"![{name}]({name})" for name in report["sheets"]),
        "",
    ]
    atomic.write_text(path, "\n".join(lines))


_EXPLANATION = (
    f"""Faces, heads and vectors are measured in each image without knowledge of the request.

* *Chance*: the same number with the images assigned to the requests at random; empty, as goals are
  undecided, with fewer than {FEWEST} requests or people.
* *Copy*: what a model would get that keeps the reference photo's head, whatever is requested.
  *Where changed* therefore counts only the requests that ask for a change of that number, and so
  do the goals.
* *Floor*: the same number for the reference photos themselves, rotated by a known angle and half of
  them mirrored. It is the error of the measurement, which a perfect model would show too.
* *Intervals*: people drawn with replacement, 500 times.

An image without a face counts as a failure in *face found*, in AUC (it loses every comparison) and
in rank-1 (a miss). It is left out of the errors and correlations of pose, expression, light and
position. Pose errors are of requested heads within ±{WITHIN:g}° about every axis. If several faces
are found, the largest counts.

No model sees *dlib*'s vectors. Models are conditioned on *mobilefacenet*, whose figures are
therefore flattering. *Rank-1 among {RANKED_AMONG}*: the own reference photo is the nearest among
itself and {RANKED_AMONG - 1} others drawn at random from this run (computed exactly, without
drawing; empty with fewer people). Photos that may show the same person are not compared.""",
)


def _main_rows(results, floor):
    """(title, cells) of each measure."""

    def find(whole, place):
        return functools.reduce(lambda part, key: part.get(key, {}), place.split("."), whole)

    for measure in MEASURES:
        show = percent if measure.unit == "share" else number
        entry = find(results, measure.place)
        measuring = find(floor, measure.place.replace(".changed.", ".all."))
        if not entry:
            continue
        low, high = entry.get("interval", (None, None))
        value, chance, copied = (show(entry.get(key)) for key in ("value", "chance", "copied"))
        cells = [value, f"{show(low)} – {show(high)}", chance, copied, show(measuring.get("value"))]
        yield measure.title, cells


def _head_table(heads):
    if not heads:
        return []
    columns = list(next(iter(heads.values())))
    return [
        "| head | " + " | ".join(c.replace("_", " ") for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(number(line[c]) for c in columns) + " |"
            for name, line in heads.items()
        ),
    ]


def _prompt_lines(prompts):
    lines = []
    if grey := prompts.get("black_and_white"):
        lines.append(
            f"* black-and-white exactly when asked for: {percent(grey['value'])} of results "
            f"(chance {percent(grey['chance'])}); "
            f"when asked {percent(grey['share_when_asked'])}, otherwise "
            f"{percent(grey['share_otherwise'])}."
        )
    if background := prompts.get("background"):
        words = "; ".join(
            f"{color}: {percent(share)}" for color, share in background["by_color"].items()
        )
        lines.append(
            f"* background of the color asked for: {percent(background['value'])} (chance "
            f"{percent(background['chance'])}); {words}."
        )
    return lines or [
        "No prompt asked for what is measured here (black-and-white; a background color)."
    ]


def _head_label(outcome):
    yaw, pitch, roll = outcome.asked.angles
    spoken = (
        outcome.request.head
        if outcome.request.head != "random"
        else f"yaw={yaw:.0f} pitch={pitch:.0f} roll={roll:.0f}"
    )
    return spoken if outcome.measured.faces else f"{spoken} (no face)"


def _shortened(text, draw, font):
    while draw.textlength(text, font=font) > CELL - 4:
        text = text[:-2].rstrip("…") + "…"
    return text


def verdict(goal: Mapping[str, Any], yes: str, no: str) -> str:
    """The outcome of one of `statistics.goals` in a few words."""
    if goal["reached"] is None:
        few = goal["number"] < goal["fewest"]
        return f"too few: {goal['number']} of {goal['fewest']}" if few else "not measured"
    return yes if goal["reached"] else no


def percent(value: float | None) -> str:
    """A share in per cent; nothing for what could not be measured."""
    return (
        ""
        if value is None or isinstance(value, dict) or math.isnan(value)
        else f"{100 * value:.1f} %"
    )


def number(value: float | None) -> str:
    """Three digits; nothing for what could not be measured."""
    if value is None or isinstance(value, dict) or math.isnan(value):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def without_nan(value: Any) -> Any:
    """JSON types with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
