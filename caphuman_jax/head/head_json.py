"""A head in numbers for people: degrees, expressions by name, a place in the picture; read from
JSON, edited by hand, and put back.

The entries, all of them optional:
  yaw, pitch, roll    degrees, signs as in `pose`
  position            [x, y, size]: middle of the head and height of the face, x in widths of the
                      picture, y and size in heights; or x, y and size as separate entries
  expression          {name: weight}, or text such as "smile=0.8,jawOpen=0.3": the whole expression
  any expression name its weight alone, the others staying as they are
  light               a preset, "x,y,z,strength", or 27 SH numbers (9 × red, green, blue)
  picture             [width, height] in pixels of the picture that the head was measured in
  model, identity, albedo   whose head it is; taken where no photo says so
  fit, reference, frame, time, file, name   for the reader; not used
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from PIL import Image

from caphuman_jax.errors import HeadError
from caphuman_jax.head import editing
from caphuman_jax.head import head as heads
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.io import json_reader

_ANGLES, PLACE = ("yaw", "pitch", "roll"), ("x", "y", "size")
_WHOSE = ("model", "identity", "albedo", "picture")
_NOT_USED = ("fit", "reference", "frame", "time", "timecode", "file", "name", "note")
NOT_OF_TARGET = (*_WHOSE, *_NOT_USED)
"""Entries that say whose head it is, or that are for the reader alone."""


def of(model: HeadModel, head: Head, whose: bool = True, **facts) -> dict:
    """The record of a head as JSON types, without model, identity and albedo where it is not to say
    `whose` it is; `facts` are further entries of _NOT_USED, such as fit.
    """
    numbers = heads.to_numbers(head, model)
    height, width = (int(side) for side in np.asarray(head.size))
    record = {
        **facts,
        **{name: numbers[name] + 0.0 for name in _ANGLES},
        "position": [round(value, 6) for value in editing.position_of(model, head)],
        "expression": numbers["expression"],
        "light": numbers["light"],
    }
    if not whose:
        return record
    return {
        "model": model.name,
        **record,
        "picture": [width, height],
        "identity": numbers["identity"],
        "albedo": _albedo_text(np.asarray(head.albedo)),
    }


def text(record: Mapping) -> str:
    """JSON with an entry a line; expressions a name a line."""
    plain = lambda value: json.dumps(value, ensure_ascii=False)
    lines = []
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            inner = ",\n".join(f"    {plain(key)}: {plain(part)}" for key, part in value.items())
            lines.append(f"  {plain(name)}: {{\n{inner}\n  }}")
        else:
            lines.append(f"  {plain(name)}: {plain(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(path: str | os.PathLike) -> dict:
    """The record in a JSON file. Raises HeadError where there is none."""
    try:
        record = json_reader.read(path)
    except OSError as error:
        raise HeadError(f"the numbers {path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # also text that is not UTF-8
        raise HeadError(f"the numbers {path} are not JSON: {error}") from error
    if not isinstance(record, dict):
        raise HeadError(
            f'the numbers {path} are a {type(record).__name__}; a head is {{"yaw": 10, …}}'
        )
    return record


def apply(model: HeadModel, head: Head, numbers: Mapping) -> Head:
    """A head with what the numbers say; identity and albedo stay its own. What is None or missing
    stays as it is.

    A single expression name replaces the weight of that expression. (Of a FLAME head this holds for
    its own coefficients; ARKit names and presets together replace the rest, since they have no
    weight of their own to keep.) Raises HeadError for unknown entries and numbers out of range."""
    given = {
        name: value
        for name, value in numbers.items()
        if value is not None and name not in (*_NOT_USED, *_WHOSE)
    }
    asked = {
        name: given.pop(name)
        for name in (*_ANGLES, "position", "expression", "light")
        if name in given
    }
    place = {name: given.pop(name) for name in PLACE if name in given}
    if place:
        if "position" in asked:
            raise HeadError("a head has a position, or x, y and size, not both")
        asked["position"] = [place.get(name) for name in PLACE]
    if "position" in asked and not (
        isinstance(asked["position"], (list, tuple)) and len(asked["position"]) == 3
    ):
        raise HeadError(f"position takes three numbers, x, y and size, not {asked['position']!r}")
    head = editing.from_numbers(model, head, **asked) if asked else head
    return (
        dataclasses.replace(head, expression=jnp.asarray(_single(model, head, given)))
        if given
        else head
    )


def build(model: HeadModel, numbers: Mapping, shape: tuple[int, int] | None = None) -> Head:
    """A head from numbers alone: what they do not say is that of the mean head, level in the middle
    of the picture, lit from the front, mid-grey.

    Args:
        model: the head model.
        numbers: see above.
        shape: (height, width) of the picture that the head is for; None: 512 × 512. The numbers'
            own `picture` stands for it where it has the same aspect ratio, or where there is none.

    Raises:
        HeadError: a wrong number, or numbers of another head model.
    """
    named = numbers.get("model", model.name)
    if named != model.name:
        raise HeadError(f"these numbers belong to the head model {named!r}, not {model.name!r}")
    width, height = _array(numbers, "picture", (2,), (shape or (512, 512))[::-1])
    if not (16 <= width <= 1e5 and 16 <= height <= 1e5):
        raise HeadError(
            f"picture is its width and height in pixels, not {numbers.get('picture')!r}"
        )
    if shape is not None and height * shape[1] != width * shape[0]:
        height, width = shape
    head = Head(
        identity=jnp.asarray(
            _array(
                numbers,
                "identity",
                (len(model.identity_basis),),
                np.zeros(len(model.identity_basis)),
            )
        ),
        expression=jnp.zeros(len(model.expression_names), jnp.float32),
        rotation=jnp.eye(3, dtype=jnp.float32),
        scale=jnp.float32(1),
        translation=jnp.zeros(2, jnp.float32),
        size=jnp.asarray([height, width], jnp.float32),
        light=jnp.asarray(editing.parse_light("front")),
        albedo=jnp.asarray(_read_albedo(model, numbers.get("albedo"))),
        residual=jnp.float32(0),
    )
    return apply(model, editing.from_numbers(model, head, position=(0.5, 0.5, 0.5)), numbers)


def _single(model, head, weights):
    """The expression (E,) of a head with the weights of single names in place of its own."""
    arkit, _ = model.arkit_basis()
    names = {name.lower(): name for name in (*editing.PRESETS, *arkit, *model.expression_names)}
    weights = {
        names.get(name.lower(), name): value for name, value in weights.items()
    }  # capture programs write JawOpen
    expression = np.array(head.expression, np.float32)
    known = set(names.values())
    unknown = [name for name in weights if name not in known]
    if unknown:
        editing.expression_vector(model, {unknown[0]: 1.0})  # raises, naming what is near
    own = {name: value for name, value in weights.items() if name in model.expression_names}
    others = {name: value for name, value in weights.items() if name not in own}
    if not set(arkit) <= set(model.expression_names):  # they have no weights of their own
        expression = editing.expression_vector(model, others) if others else expression
    else:
        for name, value in others.items():
            if editing.PRESETS[name]:
                preset = editing.expression_vector(model, {name: value})
                touched = [
                    model.expression_names.index(part)
                    for part in editing.PRESETS[name]
                    if part in model.expression_names
                ]
                expression[touched] = preset[touched]
            else:
                expression[:] = 0  # "neutral"
    for name, value in own.items():
        expression[model.expression_names.index(name)] = editing.expression_vector(
            model, {name: value}
        )[model.expression_names.index(name)]
    return expression


def _array(numbers, name, shape, default):
    try:
        array = np.asarray(default if numbers.get(name) is None else numbers[name], np.float32)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if array.shape != shape or not np.all(np.isfinite(array)):
        raise HeadError(f"{name} takes {' × '.join(map(str, shape))} numbers")
    return array


def _albedo_text(albedo):
    """Colors per vertex (V,3), or a texture (S,S,3), as a PNG picture in base64."""
    pixels = np.rint(np.clip(albedo, 0, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.reshape(pixels, (-1, *pixels.shape[-2:]))).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _read_albedo(model, coded):
    count = len(model.mean)
    if coded is None:
        return np.full((count, 3), 0.5, np.float32)
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(coded, validate=True)), formats=("PNG",))
        size = (picture.height, picture.width, 3) if picture.height > 1 else (picture.width, 3)
        fits = model.accepts_albedo(size)  # before it is decoded: it may be far larger
        pixels = np.asarray(picture.convert("RGB"), np.float32) / 255 if fits else None
    except Exception as error:  # whatever a damaged picture makes Pillow raise
        raise HeadError(
            f"the albedo of these numbers is damaged ({error}); remove it to get a gray head"
        ) from error
    if pixels is None:
        raise HeadError(
            "the albedo of these numbers is of another head model; remove it to get a gray head"
        )
    return pixels.reshape(size)
