"""The head that a picture is to show: what is asked of it, applied to the reference's head."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from caphuman_jax.errors import HeadError, SettingError
from caphuman_jax.head import editing, head_json
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.io import checks
from caphuman_jax.io.images import PhotoSource
from caphuman_jax.person.person import Person

log = logging.getLogger("caphuman_jax")

_NUMBERS = ("yaw", "pitch", "roll", "expression", "light", "position")
_TEXTS = ("photo", "photo_face", "take", "framing", "expression", "light")
# About what the shipped model was trained on; beyond it the head is followed less well.
_TRAINED_ANGLES = {"yaw": 30.0, "pitch": 20.0, "roll": 30.0}
_TRAINED_OFF_CENTER, _TRAINED_SIZES = 0.25, (0.33, 0.8)


@dataclasses.dataclass(frozen=True)
class HeadTarget:
    """The head that is asked for. Whatever is None stays as in the reference photo.

    Attributes:
        photo: another photo, whose head gives the parts in `take`.
        take: of position, pose, expression and lighting, or all; see `editing.mix`.
        framing: "head": the head photo is framed around its head, as the reference is. "photo": the
            whole photo is the frame, so that the head stands in the picture where it stands in the
            photo. The photo fills the picture's height and is centered: the sides of a wider photo
            are outside of the picture, beside a narrower one there is room.
        photo_face: number of the face in the head photo, 0 the largest.
        yaw, pitch, roll: degrees. Like the entries below they replace what the photo gives.
        expression, light: see `editing.from_numbers`.
        position: (x, y, size): x in widths of the picture to be made, y and size in heights. One of
            them that is None stays as it is.
        weights: {expression name: weight}, each of which replaces its own weight alone.

    Raises HeadError for an empty path, an unknown part or framing.
    """

    photo: PhotoSource | Person | None = None
    take: str | Sequence[str] = editing.DEFAULT_TAKE
    framing: str = "head"
    photo_face: int | None = None
    yaw: float | None = None
    pitch: float | None = None
    roll: float | None = None
    expression: str | Mapping[str, float] | None = None
    light: str | Sequence | np.ndarray | None = None
    position: Sequence[float | None] | None = None
    weights: Mapping[str, float] | None = None

    def __post_init__(self):
        checks.path("photo of head", self.photo, "a photo or of a head's numbers", HeadError)
        editing.parse_take(self.take)
        if self.framing not in editing.FRAMINGS:
            raise HeadError(
                f"there is no framing called {self.framing!r}; choose from "
                f"{', '.join(editing.FRAMINGS)}"
            )

    @classmethod
    def of(cls, head: HeadTarget | Mapping | PhotoSource | Person | None) -> HeadTarget:
        """From a dict of the fields above, a photo or Person alone, or None for no change.

        A dict may also have the entries of `head_json`, or be the path of such a file (.json). The
        entries that say whose head it is, or that are for the reader, are left out.

        Raises:
            HeadError: the dict has a key that is neither a field nor an entry, or the file cannot
                be read.
        """
        if isinstance(head, HeadTarget):
            return head
        if isinstance(head, (str, os.PathLike)) and str(head).lower().endswith(".json"):
            head = head_json.read(head)
        if isinstance(head, Mapping):
            return cls(**_fields(head, [field.name for field in dataclasses.fields(cls)]))
        return cls(photo=head)

    @property
    def numbers(self) -> dict:
        """The numbers that are asked for, as arguments of `editing.from_numbers`; `weights` are
        not among them.
        """
        return {name: getattr(self, name) for name in _NUMBERS if getattr(self, name) is not None}

    def check(self, model: HeadModel) -> None:
        """Check the numbers before any photo is read.

        Raises:
            HeadError: an unknown expression or light, or a number out of its range.
        """
        neutral = _neutral_head(len(model.expression_names))
        neutral = editing.from_numbers(model, neutral, position=(0.5, 0.5, 0.5))
        known = {*editing.PRESETS, *model.arkit_basis()[0], *model.expression_names}
        known = {name.lower() for name in known}
        for name, weight in (self.weights or {}).items():
            if name.lower() not in known:
                raise HeadError(
                    f"a head has no {name!r}; it has {', '.join(_NUMBERS)}, x, y, size and the "
                    "names of expressions"
                )
            head_json.apply(model, neutral, {name: weight})
        if self.numbers:
            editing.from_numbers(model, neutral, **self.numbers)

    def apply(self, model: HeadModel, reference: Head, source: Person | None) -> Head:
        """The reference's head with everything that is asked for.

        Args:
            model: the head model of both heads.
            reference: head of the reference photo.
            source: the person measured in `photo`, if there is one.

        Raises:
            HeadError: a number is out of its range.
        """
        head = reference
        if source is not None:
            wanted = source.head_in_photo(model) if self.framing == "photo" else source.head
            head = editing.mix(model, head, wanted, self.take)
        return self.adjust(model, head)

    def adjust(self, model: HeadModel, head: Head) -> Head:
        """A head with the numbers and weights that are asked for. Raises HeadError."""
        head = editing.from_numbers(model, head, **self.numbers) if self.numbers else head
        return head_json.apply(model, head, self.weights) if self.weights else head

    def with_numbers(self, numbers: Mapping) -> HeadTarget:
        """This target with other numbers in place of its own.

        Args:
            numbers: entries as in `of`.

        Raises:
            HeadError: an unknown entry.
        """
        other = HeadTarget.of(numbers)
        if other.photo is not None:
            raise HeadError("the heads of a sequence are numbers, not photos")
        changes = dict(other.numbers)
        if None in (place := tuple(changes.get("position") or ())):
            own = self.position or (None,) * len(place)
            changes["position"] = [b if a is None else a for a, b in zip(place, own)]
        own_weights = {} if other.expression is not None else dict(self.weights or {})
        if weights := own_weights | dict(other.weights or {}):
            changes["weights"] = weights
        return dataclasses.replace(self, **changes)

    def to_json(self, source: Person | None) -> dict:
        """What was asked for as JSON types; `source` as in `apply`."""
        asked = {name: _plain(value) for name, value in self.numbers.items()}
        if self.weights:
            asked["weights"] = _plain(self.weights)
        if source is not None:
            asked["photo"] = {"name": source.name, "sha256": source.sha256, "face": self.photo_face}
            asked |= {"take": list(editing.parse_take(self.take)), "framing": self.framing}
        return asked


def place_side_by_side(targets: Sequence[HeadTarget], height: int, width: int) -> list[HeadTarget]:
    """Give several heads positions from left to right where none is asked for.

    Args:
        targets: one of each person.
        height, width: of the picture in pixels.
    """
    if len(targets) == 1:
        return list(targets)
    placed = []
    for i, target in enumerate(targets):
        by_photo = (
            target.photo is not None
            and target.framing == "photo"
            and "position" in editing.parse_take(target.take)
        )
        if target.position is None and not by_photo:
            size = min(0.45, 0.62 * width / height / len(targets))
            position = ((i + 0.5) / len(targets), 0.5, round(size, 3))
            target = dataclasses.replace(target, position=position)
        placed.append(target)
    return placed


def warn_if_unusual(model: HeadModel, head: Head) -> None:
    """Log a warning where a head lies beyond the training data or outside the picture."""
    angles = dict(zip(_TRAINED_ANGLES, np.asarray(head.angles)))
    far = [
        f"{name} {angle:.0f}°"
        for name, angle in angles.items()
        if abs(angle) > _TRAINED_ANGLES[name]
    ]
    if far:
        limits = ", ".join(f"{name} ±{limit:.0f}°" for name, limit in _TRAINED_ANGLES.items())
        log.warning(
            "%s: beyond what the model was trained on (%s); expect it to be followed less well",
            ", ".join(far),
            limits,
        )
    x, y, size = editing.position_of(model, head)
    if not (0 <= x <= 1 and 0 <= y <= 1):
        log.warning(
            "the head lies outside the picture, at %.2f, %.2f of its width and height", x, y
        )
    elif (
        max(abs(x - 0.5), abs(y - 0.5)) > _TRAINED_OFF_CENTER
        or not _TRAINED_SIZES[0] <= size <= _TRAINED_SIZES[1]
    ):
        log.warning(
            "the head at %.2f, %.2f with size %.2f is beyond what the model was trained on (center "
            "±%g, size %g to %g)",
            x,
            y,
            size,
            _TRAINED_OFF_CENTER,
            *_TRAINED_SIZES,
        )


def _fields(entries: Mapping, known: Sequence[str]) -> dict:
    """Entries of head.json as fields of `HeadTarget`, whose names are `known`."""
    given = {key: value for key, value in entries.items() if key not in head_json.NOT_OF_TARGET}
    given = {key: value if key in _TEXTS else _as_number(value) for key, value in given.items()}
    fields: dict[str, Any] = {name: given.pop(name) for name in known if name in given}
    place = [given.pop(name, None) for name in head_json.PLACE]
    if any(number is not None for number in place):
        if fields.get("position") is not None:
            raise HeadError("a head has a position, or x, y and size, not both")
        fields["position"] = place
    unknown = [name for name, value in given.items() if not isinstance(value, Real)]
    if unknown:
        raise HeadError(
            f"a head has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}, x, y, size "
            "and the names of expressions"
        )
    weights = fields.get("weights") or {}
    if not isinstance(weights, Mapping):
        raise HeadError(f"weights are names and numbers, not {weights!r}")
    if given:
        fields["weights"] = dict(weights) | given
    return fields


def _as_number(value):
    """A cell of a table as a number, where it is one."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@functools.cache
def _neutral_head(expressions: int) -> Head:
    zeros = lambda *shape: np.zeros(shape, np.float32)
    return Head(
        zeros(1),
        zeros(expressions),
        np.eye(3, dtype=np.float32),
        np.ones((), np.float32),
        zeros(2),
        np.full(2, 256, np.float32),
        zeros(9, 3),
        zeros(1, 3),
        zeros(),
    )


def _plain(value):
    """JSON types of a setting."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, (list, tuple)) and None in value:
        return [_plain(part) for part in value]
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise SettingError(f"{value!r} is not a number")
    return array.tolist()
