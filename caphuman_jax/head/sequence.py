"""Sequences of heads: from a table, or from the frames of a video, a GIF or a folder of photos."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.errors import HeadError, NoFaceError
from caphuman_jax.face import crop as squares
from caphuman_jax.face.face import Face, find_faces
from caphuman_jax.head import editing, head_json, pose
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.camera import transform_head
from caphuman_jax.head.face_fitting import fit_head
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import fit_to_size
from caphuman_jax.io import json_reader
from caphuman_jax.io.files import read_regular
from caphuman_jax.io.frames import Source, frames

log = logging.getLogger("caphuman_jax")

FRAMINGS, MISSING = ("head", "photo"), ("interpolate", "error")
_TABLES = (".csv", ".tsv", ".json")
_LONGEST = 2**28  # bytes of a table
_SIDE = 512  # pixels of the square in which heads of a sequence are placed
_LEAST_PRESENCE = 0.9
_NAMED = 6  # frames named in a notice

Progress = Callable[[int, int | None], object]
Measure = Callable[[np.ndarray, np.ndarray], Head]


@dataclasses.dataclass(frozen=True, eq=False)
class Track:
    """Heads fitted frame by frame. heads[i] is None where frame i shows no face; each is in its own
    frame's pixels.
    squares: center (x, y) and side of the square around each head. still: the frames are photos,
    not a camera's. source: in words.
    """

    names: list[str]
    times: list[float]
    heads: list[Head | None]
    squares: list[tuple[np.ndarray, float] | None]
    still: bool
    source: str

    @property
    def missing(self) -> list[str]:
        """Names of the frames without a head."""
        return [name for name, head in zip(self.names, self.heads) if head is None]


def from_table(rows: Sequence[Mapping], model: HeadModel, reference: Head) -> list[Head]:
    """A head of the reference person for each row of `read_table`; what a row does not name is as
    in the reference. Raises HeadError.
    """
    return [_row(model, reference, row, i) for i, row in enumerate(rows)]


def from_track(
    track: Track,
    model: HeadModel,
    reference: Head,
    *,
    take: str | Iterable[str] = editing.DEFAULT_TAKE,
    framing: str = "head",
    smooth: float = 0.0,
    missing: str = "interpolate",
) -> list[Head]:
    """A head of the reference person for each frame of a track.

    Args:
        track: of `fit_frames`.
        model: of the heads.
        reference: whose other parts the heads have.
        take: the parts that frames lend, see `editing.mix`.
        framing: see `place`.
        smooth: time constant in seconds of a two-sided exponential mean, 0 for none.
        missing: frames without a face are named in a notice and interpolated from their neighbors
            ("interpolate"), or an "error".

    Raises:
        HeadError: an option is unknown.
        NoFaceError: a frame shows no face, and `missing` is "error".
    """
    editing.parse_take(take)
    if missing not in MISSING:
        raise HeadError(f"frames without a face are {' or '.join(MISSING)}, not {missing!r}")
    if track.missing and missing == "error":
        raise NoFaceError(
            f"no face found in {_list(track.missing)} of {track.source}; leave them out, or let "
            f"them be interpolated"
        )
    heads = place(track, model, framing)
    if track.missing:
        log.warning("no face found in %s; interpolated", _list(track.missing))
    heads = smoothed(interpolated(heads, track.times), track.times, smooth)
    return [editing.mix(model, reference, head, take) for head in heads]


def read_table(source: Source) -> list[dict] | None:
    """Rows of a table, or None where the source is photos or a video. Blank cells are left out.

    A table is a list of mappings, or a CSV (or TSV, or JSON list) file whose columns are named as
    in `head_json`: yaw, pitch, roll, x, y, size, light, expression, or single expression names.
    Raises HeadError.
    """
    if not isinstance(source, (str, os.PathLike)):
        rows = list(source)
        if rows and all(isinstance(row, Mapping) for row in rows):
            return [_filled(row) for row in rows]
        return None
    path = Path(source)
    if path.suffix.lower() not in _TABLES or path.is_dir():
        return None
    try:
        text = read_regular(path, _LONGEST).decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            rows = json_reader.parse(text)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise HeadError(f'{path} holds no list of heads: [{{"yaw": 10}}, …]')
        else:
            separator = "\t" if path.suffix.lower() == ".tsv" else _separator(text)
            table = csv.DictReader(text.splitlines(), delimiter=separator, strict=True)
            columns = [name.strip() for name in table.fieldnames or ()]
            twice = next((name for name in columns if name and columns.count(name) > 1), None)
            if twice is not None:
                raise HeadError(f"the table {path} has two columns named {twice!r}; leave one out")
            rows = list(table)
            if separator == ";":
                rows = [
                    {
                        name: re.sub(r"^(-?\d*),(\d+)$", r"\1.\2", cell or "") if name else cell
                        for name, cell in row.items()
                    }
                    for row in rows
                ]
    except OSError as error:
        raise HeadError(f"the table {path} cannot be read ({error.strerror or error})") from error
    except (ValueError, csv.Error) as error:
        raise HeadError(f"the table {path} cannot be read: {error}") from error
    if not rows:
        raise HeadError(
            f"the table {path} has no rows; its first line names the columns, such as "
            f"yaw,pitch,smile"
        )
    if any(None in row for row in rows):
        raise HeadError(
            f"row {next(i for i, row in enumerate(rows, 1) if None in row)} of {path} has more "
            f"cells than there are columns; "
            "put quotes around a cell with commas in it"
        )
    return [_filled(row) for row in rows]


def fit_frames(
    source: Source,
    model: HeadModel,
    *,
    face: int | None = None,
    every: int = 1,
    fps: float | None = None,
    head_of: Measure | None = None,
    progress: Progress | None = None,
) -> Track:
    """A head for every frame of `frames(source)`. Raises NoFaceError where no frame at all shows a
    face, else as `frames`.
    """
    still = not isinstance(source, (str, os.PathLike)) or Path(source).is_dir()
    names, times, heads, places, last, many = [], [], [], [], None, []
    for frame in frames(source, every, fps):
        if frame.problem is not None:
            log.warning("a frame of the sequence is taken as without a face: %s", frame.problem)
        faces = [found for found in find_faces(frame.image) if found.presence >= _LEAST_PRESENCE]
        many += [frame.name] * (len(faces) > 1)
        chosen = _follow(faces, None if still else last, face)
        head = chosen and _fit(model, frame.image, chosen, head_of)
        if head is not None:
            last = chosen
        names.append(frame.name)
        times.append(frame.time)
        heads.append(head)
        lost = head is None or chosen is None
        places.append(None if lost else squares.head_square(chosen.landmarks))
        if progress:
            progress(len(names), None)
    if not any(head is not None for head in heads):
        raise NoFaceError(f"no face found in any of the {len(heads)} frames of {_called(source)}")
    if many and face is None:
        log.warning(
            "several faces in %s of %s; took the largest%s",
            _list(many),
            _called(source),
            "" if still else " and followed it",
        )
    poor = [
        name
        for name, head in zip(names, heads)
        if head is not None and float(head.confidence) < 0.7
    ]
    if poor:
        log.warning("the head fits poorly in %s of %s", _list(poor), _called(source))
    return Track(names, times, heads, places, still, _called(source))


def place(track: Track, model: HeadModel, framing: str = "head") -> list[Head | None]:
    """The track's heads in one square picture of 512 pixels.

    framing: "head", the square around the head (of a video one for all frames, around where the
    head mostly is, so that it may move in it), or "photo", the frame itself.
    """
    if framing not in FRAMINGS:
        raise HeadError(
            f"there is no framing called {framing!r}; choose from {', '.join(FRAMINGS)}"
        )
    if framing == "photo":
        return [None if head is None else fit_to_size(head, _SIDE, _SIDE) for head in track.heads]
    known = [square for square in track.squares if square is not None]
    middle, side = (
        np.median([center for center, _ in known], axis=0),
        float(np.median([side for _, side in known])),
    )
    placed = []
    for head, square in zip(track.heads, track.squares):
        if head is None or square is None:
            placed.append(None)
            continue
        (x, y), width = square if track.still else (middle, side)
        factor = _SIDE / width
        matrix = jnp.asarray(
            [[factor, 0, (width / 2 - x) * factor], [0, factor, (width / 2 - y) * factor]],
            jnp.float32,
        )
        placed.append(transform_head(head, model, matrix, float(_SIDE), float(_SIDE)))
    return placed


def interpolated(heads: list[Head | None], times: Sequence[float]) -> list[Head]:
    """Heads with each None between two heads on the way from one to the other, in proportion to the
    times; before the first and after the last head, as these. Identity, albedo and the rest are the
    earlier head's.
    """
    known = {i: head for i, head in enumerate(heads) if head is not None}
    first, last = min(known), max(known)
    result = []
    for i in range(len(heads)):
        before, after = (
            max((k for k in known if k <= i), default=first),
            min((k for k in known if k >= i), default=last),
        )
        if before == after:
            result.append(known[before])
            continue
        part = (times[i] - times[before]) / max(times[after] - times[before], 1e-9)
        result.append(_mean([known[before], known[after]], np.asarray([1 - part, part])))
    return result


def smoothed(heads: list[Head], times: Sequence[float], seconds: float) -> list[Head]:
    """Each head's place, pose, expression and light as the mean over the sequence, weighted by
    exp(-|Δt| / seconds): no lag, and what flickers within the time constant is gone. 0: as they
    are. Raises HeadError for a negative time or NaN.
    """
    if not seconds >= 0 or not np.isfinite(seconds):
        raise HeadError(f"the time constant of smoothing is 0 or more seconds, not {seconds:g}")
    if seconds == 0 or len(heads) < 2:
        return list(heads)
    at = np.asarray(times, np.float64)
    arrays = [
        {name: np.asarray(getattr(head, name), np.float64) for name in _MOVING} for head in heads
    ]
    result = []
    for i, head in enumerate(heads):
        weights = np.exp(-np.abs(at - at[i]) / seconds)
        near = np.flatnonzero(weights > 1e-4)
        result.append(_mixed(head, [arrays[k] for k in near], weights[near]))
    return result


_MOVING = ("rotation", "scale", "translation", "expression", "light")


def _mean(heads, weights):
    return _mixed(
        heads[0],
        [{name: np.asarray(getattr(head, name), np.float64) for name in _MOVING} for head in heads],
        weights,
    )


def _mixed(head, arrays, weights):
    """The weighted mean of what moves. Rotations: the one nearest to the mean matrix (chordal
    mean); scales: geometric.
    """
    weights = weights / weights.sum()
    mean = {
        name: np.tensordot(weights, np.stack([array[name] for array in arrays]), axes=1)
        for name in _MOVING
        if name != "scale"
    }
    mean["scale"] = np.exp(np.dot(weights, np.log([array["scale"] for array in arrays])))
    changed = {name: jnp.asarray(value, jnp.float32) for name, value in mean.items()}
    return dataclasses.replace(
        head, **{**changed, "rotation": pose.orthonormal(changed["rotation"])}
    )


def _row(model, reference, row, i):
    try:
        return head_json.apply(model, reference, row)
    except HeadError as problem:
        raise HeadError(f"row {i + 1} of the sequence: {problem}") from problem


def _filled(row: Mapping) -> dict:
    cleaned = {
        str(name).strip(): value.strip() if isinstance(value, str) else value
        for name, value in row.items()
    }
    return {name: value for name, value in cleaned.items() if value is not None and value != ""}


def _separator(text: str) -> str:
    first = text.splitlines()[0] if text.strip() else ""
    return (
        ";" if first.count(";") > first.count(",") else ","
    )  # spreadsheets of countries with a decimal comma


def _follow(faces: list[Face], last: Face | None, number: int | None) -> Face | None:
    """The face of that number or the largest, or the one nearest to that of the frame before."""
    if not faces:
        return None
    if last is not None:
        center = lambda face: (face.box[:2] + face.box[2:]) / 2
        return min(faces, key=lambda face: float(np.linalg.norm(center(face) - center(last))))
    return faces[number or 0] if (number or 0) < len(faces) else None


def _fit(model, image, face, head_of) -> Head | None:
    """The head of a face in a frame, in its pixels, or None where none fits."""
    try:
        if head_of is None:
            head = fit_head(model, image, face.landmarks, face.expression)
        else:
            head = head_of(image, face.landmarks)
        return jax.tree.map(np.asarray, head)
    except HeadError:
        return None


def _list(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (
        f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    )


def _called(source) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else "the sequence"
