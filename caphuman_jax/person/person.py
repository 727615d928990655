"""From photos to what the networks are given: the person of the reference photo, and the head that
is wanted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from caphuman_jax.errors import HeadError, SettingError
from caphuman_jax.face import segmentation
from caphuman_jax.face.align import invert
from caphuman_jax.face.crop import crop_square, head_square
from caphuman_jax.face.face import Face, choose_face, find_faces
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.head import editing
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.camera import transform_head
from caphuman_jax.head.fitting import head_from_photo
from caphuman_jax.head.head import Head
from caphuman_jax.io.images import PhotoSource, photo_name, read_photo
from caphuman_jax.person.fit_warnings import doubts
from caphuman_jax.person.identity import Identifier, View

log = logging.getLogger("caphuman_jax")

FRAMINGS = ("head", "photo")
TOGETHER = ("average", "stack")
_RECOGNITION_MARGIN = (
    1.35  # square over the head square: the corners of a tilted face's recognition crop have room
)
# What the shipped model was trained on, about; beyond it the head is followed less well.
_TRAINED_ANGLES = {"yaw": 30.0, "pitch": 20.0, "roll": 30.0}
_TRAINED_OFF_CENTER, _TRAINED_SIZES = 0.25, (0.33, 0.8)


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """A face in a photo, measured; reusable for any number of pictures.

    name, sha256: the photo's file name and the checksum of its bytes (of its pixels where it is not
    a file).
    square: (S, S, 3) uint8, the upright square around the head. landmarks: (478, 3) in the square's
    pixels.
    head: in that square, with light and albedo. place: (2, 3), photo pixels to the square's;
    photo_size: (H, W).
    face: see face.Face, in the photo's pixels; face_count: faces that the photo shows.
    vectors: (K, R) unit float32 recognition vectors of K photos (1, unless people were put
    `together`); image_tokens: (K, N, W) float32; known_by: the networks that both come from
    (`Identifier.name`). confidence: of the fit, [0, 1]."""

    name: str
    sha256: str
    square: np.ndarray
    landmarks: np.ndarray
    head: Head
    place: np.ndarray
    photo_size: tuple[int, int]
    face: Face
    face_count: int
    vectors: np.ndarray
    image_tokens: np.ndarray
    known_by: str

    @property
    def confidence(self) -> float:
        """See `Head.confidence`."""
        return float(self.head.confidence)

    def head_in_photo(self, model: HeadModel) -> Head:
        """The head as it stands in the whole photo."""
        return transform_head(self.head, model, invert(self.place), *self.photo_size)


def measure(
    model: HeadModel,
    photo: PhotoSource,
    size: int,
    face: int | None = None,
    identify: Identifier | None = None,
    head_of: Callable[[np.ndarray, np.ndarray], Head] | None = None,
) -> Person:
    """The person in a photo: face number `face` (0 is the largest; None: the largest, with a
    notice), square of `size` pixels.

    identify: what knows the person; None: the shipped recognizer. head_of(photo (H, W, 3) uint8,
    landmarks (478, 3) in its pixels) gives the head in the photo; None: fitted to the landmarks.

    Raises PhotoError where the photo cannot be read, NoFaceError where it shows no face, HeadError
    where no head fits."""
    identify = identify or Identifier()
    name, image = photo_name(photo), read_photo(photo)
    faces = find_faces(image)
    chosen, _ = choose_face(faces, face, name)
    center, side = head_square(chosen.landmarks)
    square, place, _ = crop_square(image, center, side, size)
    landmarks = _moved(chosen.landmarks, place, size / side)
    # As in training: the region of the landmarks alone, and a recognition crop of the same
    # resolution as the square.
    region = segmentation.face_mask(segmentation.parse_face(landmarks, (size, size)))
    try:
        if head_of is None:
            expression = model.expression_from_arkit(expression_names(), chosen.expression)
            head = head_from_photo(model, square, landmarks, expression, region)
        else:
            head = transform_head(head_of(image, chosen.landmarks), model, place, size, size)
    except HeadError as problem:
        raise HeadError(f"{name}: {problem}") from problem
    wide, wide_size = side * _RECOGNITION_MARGIN, round(size * _RECOGNITION_MARGIN)
    context, wide_place, _ = crop_square(image, center, wide, wide_size)
    vector, tokens = identify(
        View(square, region, context, _moved(chosen.landmarks, wide_place, wide_size / wide))
    )
    person = Person(
        os.path.basename(name),
        checksum(photo, image),
        square,
        landmarks,
        head,
        place,
        image.shape[:2],
        chosen,
        len(faces),
        vector[None],
        tokens[None],
        identify.name,
    )
    for doubt in doubts(person):
        log.warning("%s: %s", name, doubt)
    return person


def together(people: Sequence[Person], how: str = "average") -> Person:
    """One person of several photos of them. The head is the first photo's; raises SettingError for
    an unknown `how`.

    "average": the means of the image tokens and of the recognition vectors, these brought back to
    length 1; "stack": each photo adds tokens of its own, so the cross-attention chooses between
    them."""
    if how not in TOGETHER:
        raise SettingError(f"photos are put together by {' or '.join(TOGETHER)}, not {how!r}")
    first, *rest = people
    if not rest:
        return first
    vectors, tokens = (
        np.concatenate(arrays) for arrays in zip(*((p.vectors, p.image_tokens) for p in people))
    )
    if how == "average":
        mean = vectors.mean(axis=0, keepdims=True)
        vectors, tokens = (
            mean / max(float(np.linalg.norm(mean)), 1e-12),
            tokens.mean(axis=0, keepdims=True),
        )
    names, sums = (" + ".join(texts) for texts in zip(*((p.name, p.sha256) for p in people)))
    return dataclasses.replace(first, name=names, sha256=sums, vectors=vectors, image_tokens=tokens)


def stack_people(people: Sequence[Person]) -> dict[str, np.ndarray]:
    """image_tokens (P, K, N, W) and recognition (P, K, R) of people in one picture.

    People of fewer photos have their tokens repeated: attention to every token twice is attention
    to every token once."""
    count = math.lcm(*(len(person.vectors) for person in people))
    repeat = lambda array: np.tile(array, (count // len(array), *[1] * (array.ndim - 1)))
    return {
        "image_tokens": np.stack([repeat(person.image_tokens) for person in people]),
        "recognition": np.stack([repeat(person.vectors) for person in people]),
    }


@dataclasses.dataclass(frozen=True)
class WantedHead:
    """What the head in the picture is to be; whatever is None stays as in the reference photo.

    photo: another photo, whose head lends `take` (of position, pose, expression, lighting, or all;
    see `control.mix`).
    framing: "head" — the head photo is framed around its head, as the reference is; "photo" — the
    whole photo is the frame (by its height, about its center), so that the head stands in the
    picture where it stands in the photo.
    photo_face: number of the face in it. The numbers go over what the photo gives: yaw, pitch, roll
    in degrees;
    expression, light, position: see `control.from_numbers`.
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
    def of(cls, head) -> WantedHead:
        """From None, a dict of the fields above, or a photo (or Person) alone."""
        if isinstance(head, WantedHead):
            return head
        if isinstance(head, Mapping):
            known = [field.name for field in dataclasses.fields(cls)]
            unknown = [key for key in head if key not in known]
            if unknown:
                raise HeadError(
                    f"a head has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
                )
            return cls(**head)
        return cls(photo=head)

    @property
    def numbers(self) -> dict:
        """The numbers that are asked for, as arguments of `control.from_numbers`."""
        names = ("yaw", "pitch", "roll", "expression", "light", "position")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def check(self, model: HeadModel) -> None:
        """Raises HeadError for an unknown expression or light: before any photo is looked at."""
        if self.expression is not None:
            editing.expression_vector(model, self.expression)
        if self.light is not None:
            editing.parse_light(self.light)

    def build(self, model: HeadModel, reference: Head, lender: Person | None) -> Head:
        """The reference's head with everything asked for; `lender` is the measured `photo`. Raises
        HeadError.
        """
        head = reference
        if lender is not None:
            wanted = lender.head_in_photo(model) if self.framing == "photo" else lender.head
            head = editing.mix(model, head, wanted, self.take)
        return editing.from_numbers(model, head, **self.numbers) if self.numbers else head

    def record(self, lender: Person | None) -> dict:
        """What was asked for, as JSON types."""
        asked = {name: _plain(value) for name, value in self.numbers.items()}
        if lender is not None:
            asked["photo"] = {"name": lender.name, "sha256": lender.sha256, "face": self.photo_face}
            asked |= {"take": list(editing.parse_take(self.take)), "framing": self.framing}
        return asked


def note_unusual(model: HeadModel, head: Head) -> None:
    """Log a notice where a head lies beyond what the model was trained on, or outside the picture."""
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
            "the head at %.2f, %.2f with size %.2f is beyond what the model was trained on (middle "
            "±%g, size %g to %g)",
            x,
            y,
            size,
            _TRAINED_OFF_CENTER,
            *_TRAINED_SIZES,
        )


def _moved(landmarks: np.ndarray, matrix: np.ndarray, scale: float) -> np.ndarray:
    """Landmarks (478, 3) through a transform (2, 3) of that scale."""
    xy = landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([xy, landmarks[:, 2:] * scale], axis=1).astype(np.float32)


def checksum(photo: PhotoSource, image: np.ndarray) -> str:
    """SHA-256 of a photo's file, or of its pixels where it is not a file."""
    if isinstance(photo, (str, os.PathLike)):
        return hashlib.sha256(Path(photo).read_bytes()).hexdigest()
    return hashlib.sha256(
        bytes(photo) if isinstance(photo, (bytes, bytearray)) else np.ascontiguousarray(image)
    ).hexdigest()


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
