"""Writes the report of a run, and that of a comparison: one HTML page that needs no network, and
CSV files.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from caphuman_jax.evaluation import comparison as comparing
from caphuman_jax.evaluation.comparison import Comparison
from caphuman_jax.evaluation.page import intro, tables, without_pictures
from caphuman_jax.evaluation.page.columns import as_script, columns
from caphuman_jax.evaluation.scored_run import SCORES, SUMMARY, ScoredRun
from caphuman_jax.io import atomic

REPORT, COMPARISON = "report.html", "comparison.html"
_SCRIPTS = ("dom", "data", "plots", "cases", "list", "main")


def write_report(run: ScoredRun, pictures: bool = True) -> Path:
    """Write report.html, scores.csv and summary.csv into the run's folder.

    Args:
        run: the run.
        pictures: whether the page shows pictures and names of photos and links to the files next
            to it; the CSV files are the same with and without.

    Returns:
        The page.
    """
    folder = run.folder
    _write_csv(folder / "scores.csv", _score_rows(run))
    _write_csv(folder / "summary.csv", _summary_rows(run))
    names = [SUMMARY, "summary.csv", SCORES, "scores.csv", "report.json"]
    if not pictures:
        run, names = without_pictures.of_run(run), []
    model = str(run.settings.get("model") or run.name)
    page = _page(
        columns([run], folder),
        pictures=pictures,
        kind="evaluation",
        title=f"{model}: evaluation",
        heading=model,
        lead=intro.of_run(run, model),
        files=[name for name in names if (folder / name).is_file()],
        verdict=tables.key_figures(run.measures),
        summary_title="Summary",
        legend=tables.LEGEND,
        summary=tables.summary(run.measures),
        method=tables.METHOD,
    )
    atomic.write_text(folder / REPORT, page)
    return folder / REPORT


def write_comparison(found: Comparison, folder: Path, pictures: bool = True) -> Path:
    """Write comparison.html, comparison.json and comparison.csv into a folder, which is made.

    Args:
        found: the comparison.
        folder: where to write.
        pictures: whether the page shows pictures and names of photos and links to the files next
            to it; without, no file has the runs' paths.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not pictures:
        found = without_pictures.of_comparison(found)
    names = [run.name for run in found.runs]
    document = _finite(comparing.record(found))
    atomic.write_text(folder / "comparison.json", json.dumps(document, indent=1) + "\n")
    rows = [comparing.difference_record(found, one) for one in found.differences]
    _write_csv(folder / "comparison.csv", rows)
    heading = f"{', '.join(names[1:])} compared with {names[0]}"
    data = columns(found.runs, folder)
    surest = min(found.differences, key=lambda one: (one.adjusted, one.p), default=None)
    if surest is not None:
        data |= {"first": data["index"][surest.measure.name], "first_run": surest.run}
    page = _page(
        data,
        pictures=pictures,
        kind="comparison",
        title=heading,
        heading=heading,
        lead=intro.of_comparison(found),
        files=["comparison.json", "comparison.csv"] if pictures else [],
        verdict=intro.verdict(found),
        summary_title="Differences",
        legend=tables.LEGEND_OF_DIFFERENCES,
        summary=tables.differences(found),
        method=tables.METHOD_OF_COMPARISON,
    )
    atomic.write_text(folder / COMPARISON, page)
    return folder / COMPARISON


def _page(
    data: Mapping[str, Any],
    *,
    pictures: bool,
    kind: str,
    title: str,
    heading: str,
    lead: str,
    files: Sequence[str],
    verdict: str,
    summary_title: str,
    legend: str,
    summary: str,
    method: str,
) -> str:
    """The page; `lead` and `verdict` to `method` are HTML, and other texts are escaped here."""
    script = "\n".join(_part(f"{name}.js") for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sections = [("summary", summary_title), ("measure", "One measure"), ("cases", "Cases")]
    sections += [("pictures", "Pictures"), ("method", "How to read this")]
    example = next((one["name"] for one in data["measures"]), "yaw")
    links = (f'<a href="{html.escape(name)}">{html.escape(name)}</a>' for name in files)
    parts = {
        "IMAGES": "img-src data: file: 'self'; " if pictures else "",
        "SCRIPT_HASH": f"sha256-{digest}",
        "STYLE": _part("page.css"),
        "SCRIPT": script,
        "DATA": as_script(data),
        "TITLE": html.escape(title),
        "KIND": kind,
        "HEADING": html.escape(heading),
        "LEAD": lead + ("" if pictures else intro.NOT_SHOWN),
        "FILES": f'<p class="files">{"".join(links)}</p>' if files else "",
        "SECTIONS": "".join(f'<a href="#{name}">{text}</a>' for name, text in sections),
        "VERDICT": verdict,
        "SUMMARY_TITLE": summary_title,
        "LEGEND": legend,
        "SUMMARY": summary,
        "EXAMPLE": html.escape(f"{example}>0.5"),
        "PAPER": tables.paper(),
        "METHOD": method,
    }
    return re.sub(r"@@([A-Z_]+)@@", lambda found: parts[found[1]], _part("page.html"))


def _part(name: str) -> str:
    return files("caphuman_jax.evaluation.page").joinpath(name).read_text("utf-8")


def _score_rows(run: ScoredRun) -> list[dict[str, Any]]:
    angles = list(dict.fromkeys(name for one in run.pictures for name in one.asked))
    names = [one.name for one in run.measures]
    return [
        {
            "id": one.id,
            "person": one.person,
            "prompt": one.prompt,
            "head": one.head,
            "seed": one.seed,
            "file": one.file,
            **{f"asked_{name}": one.asked.get(name) for name in angles},
            **{name: one.scores.get(name) for name in names},
        }
        for one in run.pictures
    ]


def _summary_rows(run: ScoredRun) -> list[dict[str, Any]]:
    return [
        {
            "measure": one.name,
            "title": one.title,
            "value": one.value,
            "low": one.interval[0],
            "high": one.interval[1],
            "unit": one.unit,
            "direction": one.direction,
            "chance": one.chance,
            "copy": one.copy,
            "floor": one.floor,
            "people": one.people,
            "pictures": one.pictures,
            "source": one.source,
            "definition": one.definition,
        }
        for one in run.measures
    ]


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(_finite(row) for row in rows)
    atomic.write_text(path, text.getvalue())


def _finite(value: Any) -> Any:
    """Without NaN, which becomes None (an empty cell)."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
