"""Runs as the columns that the page's scripts read, with the pictures that they show first."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from caphuman_jax.errors import PhotoError
from caphuman_jax.evaluation.numbers_in_words import as_heading
from caphuman_jax.evaluation.scored_run import Scored, ScoredRun, distinct_scores
from caphuman_jax.io.images import read_photo

ANGLES = ("yaw", "pitch", "roll")
_SIDE, _QUALITY = 224, 78  # of pictures within the page: pixels, and WebP's quality
_SHOWN, _SHOWN_OF_MANY, _MANY = 6, 3, 24  # cases on each side of a measure, and what many are
_DIGITS = 5


def columns(runs: Sequence[ScoredRun], folder: Path) -> dict[str, Any]:
    """What the page's scripts read, as JSON types.

    Args:
        runs: one, or several with the same pictures in the same order.
        folder: where the page will be; links are relative to it.

    Returns:
        runs, measures and index (see `distinct_scores`), words ({"person", "prompt",
        "head": distinct texts}), their numbers by picture, asked ({angle: values}), files ([run]
        [picture], as links), references, heads, illustrated (whether there is any link), values
        ([run][measure][picture]), shown (cases on each side), pictures ({link: data URI}).
    """
    first, pictures = runs[0], runs[0].pictures
    measures, index = distinct_scores(runs)
    tables = [[_rounded(run.values(one.name)) for one in measures] for run in runs]

    link = _linker(folder)
    references = [
        link(first.folder, one.references[0]) if one.references else "" for one in pictures
    ]
    heads = [link(first.folder, one.head_file) for one in pictures]
    files = [[link(run.folder, one.file) for one in run.pictures] for run in runs]
    many = len(measures) * max(1, len(runs) - 1) > _MANY
    shown = _SHOWN_OF_MANY if many else _SHOWN
    signs = [one.sign or 1 for one in measures]
    links: dict[str, None] = {}
    for i in _cases(tables, signs, [one.person for one in pictures], shown):
        links |= dict.fromkeys([references[i], heads[i], *(its[i] for its in files)])
    small = {one: _small(folder / _path(one)) for one in links if one}

    words, numbers = {}, {}
    for name, of in (
        ("person", lambda one: one.person),
        ("prompt", lambda one: one.prompt),
        ("head", lambda one: one.head),
    ):
        words[name], numbers[name] = _coded(pictures, of)
    asked = {a: [_json(one.asked.get(a, math.nan)) for one in pictures] for a in ANGLES}
    return {
        "rows": len(pictures),
        "runs": [{"name": run.name} for run in runs],
        "measures": [
            {
                "name": one.name,
                "title": as_heading(one.title),
                "unit": one.unit,
                "direction": one.direction,
                "definition": one.definition,
                "source": one.source,
                **{name: _json(getattr(one, name)) for name in ("chance", "floor", "copy")},
            }
            for one in measures
        ],
        "index": index,
        "words": words,
        **numbers,
        "id": [one.id for one in pictures],
        "seed": [one.seed for one in pictures],
        "faces": [one.faces for one in pictures],
        "asked": {
            name: values for name, values in asked.items() if any(v is not None for v in values)
        },
        "illustrated": any(map(any, (references, heads, *files))),
        "references": references,
        "heads": heads,
        "files": files,
        "values": [[[_json(v) for v in one] for one in table] for table in tables],
        "shown": shown,
        "pictures": {one: data for one, data in small.items() if data},
    }


def as_script(value: Any) -> str:
    """JSON that may stand in an HTML script element, whatever texts it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _cases(
    tables: Sequence[Sequence[np.ndarray]], signs: Sequence[int], person: Sequence[str], shown: int
) -> list[int]:
    """The pictures at both ends of each measure, or of its differences, one for each person first;
    the same as in page/cases.js.
    """
    chosen: dict[int, None] = {}
    for table in tables[1:] or tables:
        for measure, sign in enumerate(signs):
            quantity = table[measure] - (tables[0][measure] if len(tables) > 1 else 0.0)
            finite = np.flatnonzero(np.isfinite(quantity))
            for way in (sign, -sign):
                order = finite[np.argsort(way * quantity[finite], kind="stable")]
                chosen |= dict.fromkeys(_first_ones(map(int, order), person, shown))
    return list(chosen)


def _first_ones(order: Iterable[int], person: Sequence[str], count: int) -> list[int]:
    found, seen = [], set()
    for i in order:
        if len(found) == count:
            break
        if person[i] not in seen:
            seen.add(person[i])
            found.append(i)
    return found


def _linker(folder: Path) -> Callable[[Path, str], str]:
    """link(run's folder, file in it) → the link of an existing file, or ""."""

    @cache
    def link(run: Path, file: str) -> str:
        path = run / file
        if not file or not path.is_file():
            return ""
        relative = os.path.relpath(path.resolve(), folder.resolve())
        return quote(Path(relative).as_posix().encode("utf-8", "surrogateescape"))

    return link


def _path(link: str) -> str:
    from urllib.parse import unquote_to_bytes

    return os.fsdecode(unquote_to_bytes(link))


def _small(path: Path) -> str:
    """A picture as a data URI of at most _SIDE pixels, or "" where it cannot be read."""
    try:
        picture = Image.fromarray(read_photo(path))
    except PhotoError:
        return ""
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _coded(pictures: Sequence[Scored], of: Callable[[Scored], str]) -> tuple[list[str], list[int]]:
    numbers: dict[str, int] = {}
    coded = [numbers.setdefault(of(one), len(numbers)) for one in pictures]
    return list(numbers), coded


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.array([float(f"{v:.{_DIGITS}g}") for v in values])


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
