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

_HEAD = ("angles", "position", "expression", "light")


def save(path: Path, ids: Sequence[str], measured: Sequence[ImageMeasurement]) -> None:
    """Write the measurements of pictures of the requests `ids`."""
    arrays = {"ids": np.array(ids, dtype=str), "faces": np.array([m.faces for m in measured])}
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
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); evaluate again into a new directory"
        ) from error
    part = lambda prefix, i: {
        name.removeprefix(prefix): array[i]
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    for i, number in enumerate(arrays["ids"]):
        values = json.loads(str(arrays["values"][i])) | part("value.", i)
        head = HeadParams(**part("head.", i))
        vectors = part("vector.", i)
        yield str(number), ImageMeasurement(int(arrays["faces"][i]), head, vectors, values)
