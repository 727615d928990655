"""What a sound record is: ranges of arrays, whole images, and rules for single features."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from caphuman_jax.errors import DataError
from caphuman_jax.io import json_reader
from caphuman_jax.models.tokenizer import END_ID, START_ID
from data_pipeline.records import tf_example
from data_pipeline.records.schema import Feature

_MARKERS = {"jpeg": (b"\xff\xd8", b"\xff\xd9"), "png": (b"\x89PNG", b"IEND\xaeB`\x82")}
_MAY_BE_NAN = frozenset({"colours"})


def check_record(
    features: Sequence[Feature], record: dict, pictures: bool = True
) -> Iterator[tuple[str, str]]:
    """(feature, what is wrong) of a decoded record; `pictures`: decode its images too."""
    for feature in features:
        value = record[feature.name]
        if feature.kind == "image":
            yield from ((feature.name, what) for what in _check_image(feature, value, pictures))
        elif feature.kind == "array":
            yield from ((feature.name, what) for what in _check_range(feature, value))
        rule = _RULES.get(
            feature.name.partition("/")[0]
            if feature.name.startswith("recognition/")
            else feature.name
        )
        what = rule(feature, value) if rule else None
        if what:
            yield feature.name, what


def _check_image(feature: Feature, encoded: bytes, pictures: bool) -> Iterator[str]:
    begin, end = _MARKERS[str(feature.encoding)]
    if not (encoded.startswith(begin) and encoded.endswith(end)):
        yield f"is not a whole {feature.encoding} file"
    elif pictures:
        try:
            tf_example.decode_image(feature, encoded)
        except DataError as error:
            yield str(error).removeprefix(f"{feature.name} ")


def _check_range(feature: Feature, array: np.ndarray) -> Iterator[str]:
    values = np.asarray(array, np.float64)
    odd = ~np.isfinite(values)
    if feature.name in _MAY_BE_NAN:
        odd &= ~np.isnan(values)
    if odd.any():
        first = tuple(int(i[0]) for i in np.nonzero(odd))
        yield f"holds {int(odd.sum())} values that are not finite, the first at {first}"
    low = -np.inf if feature.low is None else feature.low
    high = np.inf if feature.high is None else feature.high
    beyond = np.isfinite(values) & ((values < low) | (values > high))
    if beyond.any():
        yield f"holds {float(values[beyond][0]):.6g}, which is not from {low:g} to {high:g}"


def _whole_rectangle(_, covered):
    return (
        None
        if covered[0] < covered[2] and covered[1] < covered[3]
        else f"is not a rectangle: {covered.tolist()}"
    )


def _in_the_square(_, landmarks):
    outside = np.any((landmarks[:, :2] < 0) | (landmarks[:, :2] > 1), axis=1)
    return f"{int(outside.sum())} landmarks lie outside of the square" if outside.any() else None


def _a_rotation(_, matrix):
    off = float(np.abs(matrix @ matrix.T - np.eye(3)).max())
    return (
        None
        if off < 1e-3 and np.linalg.det(matrix) > 0
        else f"is not a rotation: off by {off:.2g}, determinant {np.linalg.det(matrix):.3g}"
    )


def _a_unit_vector(feature, vector):
    length = float(np.linalg.norm(vector))
    if feature.name == "recognition/dlib":  # of about 1.3, never normalized
        return None if length > 0.1 else f"has the length {length:.3g}"
    return None if abs(length - 1) < 2e-3 else f"has the length {length:.6g}, not 1"


def _whole_captions(_, ids):
    if np.any(ids[:, 0] != START_ID):
        row = int(np.argmax(ids[:, 0] != START_ID))
        return f"row {row} does not begin with the start token {START_ID}"
    ends = np.any(ids == END_ID, axis=1)
    return None if ends.all() else f"row {int(np.argmin(ends))} has no end token {END_ID}"


def _json_object(_, text):
    try:
        return None if isinstance(json_reader.parse(text), dict) else "is not a JSON object"
    except ValueError as error:
        return f"is not JSON: {error}"


_RULES: dict[str, Callable] = {
    "key": lambda _, text: None if text else "is empty",
    "sha256": lambda _, text: (
        None if re.fullmatch("[0-9a-f]{64}", text) else f"{text!r} is not a SHA-256"
    ),
    "captions": lambda _, texts: (
        None if texts and all(texts) else "has no caption, or an empty one"
    ),
    "attributes": _json_object,
    "caption_ids": _whole_captions,
    "covered": _whole_rectangle,
    "landmarks": _in_the_square,
    "head/rotation": _a_rotation,
    "recognition": _a_unit_vector,
    "head/scale": lambda _, scale: None if scale > 0 else "is not above 0",
}
