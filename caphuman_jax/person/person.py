"""A photo to the person in it: the face, the head, and what the model knows them by.

`analyze_photo` is the one way from a photo to a `Person`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.errors import HeadError, PhotoError, SettingError
from caphuman_jax.face import recognition
from caphuman_jax.face.align import invert
from caphuman_jax.face.crop import MARGIN, crop_square, head_square
from caphuman_jax.face.face import Face, choose_face, find_faces
from caphuman_jax.head.base import HeadEstimator, HeadModel
from caphuman_jax.head.camera import transform_head
from caphuman_jax.head.face_fitting import face_region, fit_head
from caphuman_jax.head.head import Head
from caphuman_jax.io.images import PhotoSource, photo_name, read_photo
from caphuman_jax.person import fit_warnings
from caphuman_jax.person.identity import Identifier, View

log = logging.getLogger("caphuman_jax")

COMBINE = ("mean", "stack")
"""How several photos of one person are combined, see `combine_references`."""
# Cosine of the shipped recognizer's vectors below which two photos hardly show one person. Of 159
# portraits of 175 x 220 pixels, more than 80 % of the pairs of strangers lie below it, and 1 % of
# the pairs of a portrait and itself at a third of its size.
_STRANGERS = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """A face in a photo, measured; reusable for any number of images.

    Attributes:
        name, sha256: the photo's file name and the checksum of its bytes (of its pixels where it is
            not a file).
        square: (S, S, 3) uint8, the upright square around the head.
        landmarks: (478, 3) in the square's pixels.
        head: in that square, with light and albedo.
        place: (2, 3), photo pixels to the square's.
        photo_size: (height, width).
        face: in the photo's pixels.
        face_count: faces that the photo shows.
        vectors: (K, R) unit float32 recognition vectors of K photos; K is 1 unless several were
            combined by `combine_references`.
        image_tokens: (K, N, W) float32.
        known_by: the networks that both come from (`Identifier.name`).
        recognized: vector (192,) and features (49, 512) of the shipped recognizer, whatever the
            model knows people by; None for a person from an identity file.
    """

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
    recognized: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def confidence(self) -> float:
        """See `Head.confidence`."""
        return float(self.head.confidence)

    def head_in_photo(self, model: HeadModel) -> Head:
        """The head as it stands in the whole photo."""
        return transform_head(self.head, model, invert(self.place), *self.photo_size)

    def warnings(self) -> list[str]:
        """Reasons why the head may be wrong, see `fit_warnings`; [] if there are none."""
        known = self.recognized or recognition.identity(self.square, self.landmarks)
        return fit_warnings.fit_warnings(
            self.head, self.face, self.photo_size, self.square, self.landmarks, known[1]
        )


def analyze_photo(
    model: HeadModel,
    photo: PhotoSource,
    size: int,
    face: int | None = None,
    identify: Identifier | None = None,
    head_of: HeadEstimator | None = None,
) -> Person:
    """Measure the person in a photo. Warnings about the fit are logged.

    Args:
        model: of the head.
        photo: a file or pixels.
        size: side of the square in pixels.
        face: number of the face, 0 the largest; None: the largest, with a warning where there are
            several.
        identify: what knows the person; None: the shipped recognizer.
        head_of: (photo (H, W, 3) uint8, landmarks (478, 3) in its pixels) → the head in the photo;
            None: fitted to the landmarks.

    Raises:
        PhotoError: the photo cannot be read, or shows no face (NoFaceError).
        HeadError: no head fits.
    """
    identify = identify or Identifier()
    name, image = photo_name(photo), read_photo(photo)
    faces = find_faces(image)
    chosen = choose_face(faces, face, name)
    center, side = head_square(chosen.landmarks)
    square, place, _ = crop_square(image, center, side, size)
    landmarks = transform_landmarks(chosen.landmarks, place, size / side)
    try:
        if head_of is None:
            head = fit_head(model, square, landmarks, chosen.expression)
        else:
            head = transform_head(head_of(image, chosen.landmarks), model, place, size, size)
    except HeadError as problem:
        raise HeadError(f"{name}: {problem}") from problem
    # As in training: the region of the landmarks alone, and a recognition crop of the same
    # resolution as the square.
    wide, wide_size = side * MARGIN, round(size * MARGIN)
    context, wide_place, _ = crop_square(image, center, wide, wide_size)
    wide_landmarks = transform_landmarks(chosen.landmarks, wide_place, wide_size / wide)
    view = View(square, face_region(landmarks, (size, size)), context, wide_landmarks)
    vector, tokens = identify(view)
    person = Person(
        os.path.basename(name),
        checksum(photo),
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
        view.recognized,
    )
    for warning in person.warnings():
        log.warning("%s: %s", name, warning)
    return person


def measure_references(
    photos: Sequence[Any], measure: Callable[[Any], Person]
) -> tuple[Person, ...]:
    """Measure several photos of one person. Those without a usable face are left out with a
    warning while one is left.

    Args:
        photos: whatever `measure` takes.
        measure: photo → Person.

    Raises:
        CapHumanError: no photo is left, or one does not exist.
    """
    people, problem = [], None
    for photo in photos:
        try:
            people.append(measure(photo))
        except (PhotoError, HeadError) as error:
            if len(photos) == 1 or isinstance(error.__cause__, FileNotFoundError):
                raise
            log.warning("this reference photo is left out: %s", error)
            problem = problem or error
    if problem is not None and not people:
        raise problem
    return tuple(people)


def combine_references(people: Sequence[Person], how: str = "mean") -> Person:
    """One person from several photos of them; the head is the first photo's.

    Args:
        people: one of each photo.
        how: "mean": of the image tokens, and of the recognition vectors, which are normalized
            again. "stack": each photo adds its tokens, and cross-attention chooses between them.

    Raises:
        SettingError: another `how`.
    """
    if how not in COMBINE:
        raise SettingError(f"combine must be {' or '.join(COMBINE)}, not {how!r}")
    first, *rest = people
    if not rest:
        return first
    _warn_of_strangers(people)
    vectors, tokens = (
        np.concatenate(arrays) for arrays in zip(*((p.vectors, p.image_tokens) for p in people))
    )
    if how == "mean":
        mean = vectors.mean(axis=0, keepdims=True)
        vectors = mean / max(float(np.linalg.norm(mean)), 1e-12)
        tokens = tokens.mean(axis=0, keepdims=True)
    names, sums = (" + ".join(texts) for texts in zip(*((p.name, p.sha256) for p in people)))
    return dataclasses.replace(first, name=names, sha256=sums, vectors=vectors, image_tokens=tokens)


def _warn_of_strangers(people: Sequence[Person]) -> None:
    """Log a warning for each photo that hardly shows the person of the first one."""
    known = [(person.name, person.recognized[0]) for person in people if person.recognized]
    for name, vector in known[1:]:
        if float(known[0][1] @ vector) < _STRANGERS:
            log.warning(
                "%s and %s do not look like the same person; the pictures will show a mixture",
                known[0][0],
                name,
            )


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


def transform_landmarks(landmarks: np.ndarray, matrix: np.ndarray, scale: float) -> np.ndarray:
    """Landmarks (478, 3) through a transform (2, 3) whose scale is `scale`."""
    xy = landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([xy, landmarks[:, 2:] * scale], axis=1).astype(np.float32)


def checksum(photo: PhotoSource) -> str:
    """SHA-256 of a photo's file, or of its pixels where it is not a file."""
    if isinstance(photo, (str, os.PathLike)):
        return hashlib.sha256(Path(photo).read_bytes()).hexdigest()
    if isinstance(photo, (bytes, bytearray)):
        return hashlib.sha256(bytes(photo)).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(read_photo(photo)).data).hexdigest()
