"""Measurements of pictures in a file, so that each picture is measured once."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from caphuman_jax.errors import DataError
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement
from caphuman_jax.io import atomic

Frame = tuple[float, float, float, float]
_HEAD = ("angles", "position", "expression", "light")


def save(
    path: Path,
    ids: Sequence[str],
    measured: Sequence[ImageMeasurement],
    asked: Sequence[HeadParams] = (),
    frames: Sequence[Frame] = (),
) -> None:
    """Write the measurements of the requests `ids`.

    Args:
        path: the file.
        ids: of requests.
        measured: in the picture of each.
        asked: the head that each asks for, where it is not known without the picture.
        frames: with `asked`, of the squares that were measured, see `Outcome`.
    """
    arrays = {"ids": np.array(ids, dtype=str), "faces": np.array([m.faces for m in measured])}
    for field in _HEAD if asked else ():
        arrays[f"asked.{field}"] = np.stack([getattr(one, field) for one in asked])
    if asked:
        arrays["frames"] = np.array(frames, np.float64)
    for field in _HEAD:
        arrays[f"head.{field}"] = np.stack([getattr(m.head, field) for m in measured])
    for name in measured[0].vectors:
        arrays[f"vector.{name}"] = np.stack([m.vectors[name] for m in measured])
    plain: list[dict] = [{} for _ in measured]
    for name, value in measured[0].values.items():
        if isinstance(value, np.ndarray):
            arrays[f"value.{name}"] = np.stack([m.values[name] for m in measured])
        else:
            for row, m in zip(plain, measured):
                row[name] = m.values[name]
    arrays["values"] = np.array([json.dumps(row) for row in plain], dtype=str)
    document = io.BytesIO()
    np.savez(document, **arrays)
    atomic.write_bytes(path, document.getvalue())


def load(path: Path) -> Iterator[tuple[str, ImageMeasurement]]:
    """The measurements in a file, by request.

    Raises:
        DataError: the file is missing or damaged.
    """
    arrays = _arrays(path)
    for i, number in enumerate(arrays["ids"]):
        values = json.loads(str(arrays["values"][i])) | _row(arrays, "value.", i)
        head = HeadParams(**_row(arrays, "head.", i))
        vectors = _row(arrays, "vector.", i)
        yield str(number), ImageMeasurement(int(arrays["faces"][i]), head, vectors, values)


def load_asked(path: Path) -> Iterator[tuple[str, tuple[HeadParams, Frame]]]:
    """The heads that were asked for and the frames of their squares, by request, where the file has
    them.

    Raises:
        DataError: the file is missing or damaged.
    """
    arrays = _arrays(path)
    for i, number in enumerate(arrays["ids"] if f"asked.{_HEAD[0]}" in arrays else ()):
        left, top, width, height = map(float, arrays["frames"][i])
        yield str(number), (HeadParams(**_row(arrays, "asked.", i)), (left, top, width, height))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); evaluate again into a new directory"
        ) from error


def _row(arrays: dict[str, np.ndarray], prefix: str, i: int) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array[i]
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
