"""The head that a picture is to show: what is asked of it, applied to the reference's head."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np

from caphuman_jax.errors import HeadError, SettingError
from caphuman_jax.head import editing, head_json
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.io.images import PhotoSource
from caphuman_jax.person.person import Person

log = logging.getLogger("caphuman_jax")

FRAMINGS = ("head", "photo")
_NUMBERS = ("yaw", "pitch", "roll", "expression", "light", "position")
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
        position: (x, y, size): x in widths of the picture to be made, y and size in heights.

    Raises HeadError for an unknown part or framing.
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
    position: Sequence[float] | None = None

    def __post_init__(self):
        editing.parse_take(self.take)
        if self.framing not in FRAMINGS:
            raise HeadError(
                f"there is no framing called {self.framing!r}; choose from {', '.join(FRAMINGS)}"
            )

    @classmethod
    def of(cls, head: HeadTarget | Mapping | PhotoSource | Person | None) -> HeadTarget:
        """From a dict of the fields above, a photo or Person alone, or None for no change.

        A dict may also be what `caphuman head` writes, or the path of such a file (.json): its
        entries that say whose head it is, or that are for the reader, are left out.

        Raises:
            HeadError: the dict has a key that is not a field, or the file cannot be read.
        """
        if isinstance(head, HeadTarget):
            return head
        if isinstance(head, (str, os.PathLike)) and str(head).lower().endswith(".json"):
            head = head_json.read(head)
        if isinstance(head, Mapping):
            known = [field.name for field in dataclasses.fields(cls)]
            head = {key: value for key, value in head.items() if key not in head_json.NOT_OF_TARGET}
            unknown = [key for key in head if key not in known]
            if unknown:
                raise HeadError(
                    f"a head has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
                )
            return cls(**head)
        return cls(photo=head)

    @property
    def numbers(self) -> dict:
        """The numbers that are asked for, as arguments of `editing.from_numbers`."""
        return {name: getattr(self, name) for name in _NUMBERS if getattr(self, name) is not None}

    def check(self, model: HeadModel) -> None:
        """Check the numbers before any photo is read.

        Raises:
            HeadError: an unknown expression or light, or a number out of its range.
        """
        if self.numbers:
            editing.from_numbers(model, _neutral_head(), **self.numbers)

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
        return editing.from_numbers(model, head, **self.numbers) if self.numbers else head

    def to_json(self, source: Person | None) -> dict:
        """What was asked for as JSON types; `source` as in `apply`."""
        asked = {name: _plain(value) for name, value in self.numbers.items()}
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


@functools.cache
def _neutral_head() -> Head:
    zeros = lambda *shape: np.zeros(shape, np.float32)
    return Head(
        zeros(1),
        zeros(1),
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
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise SettingError(f"{value!r} is not a number")
    return array.tolist()
