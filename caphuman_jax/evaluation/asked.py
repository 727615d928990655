"""What a suite asks for, picture by picture, and how the faces in a finished picture are found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.evaluation import prompt_suite
from caphuman_jax.evaluation.outcome import WHOLE, HeadParams, ImageMeasurement, Subject
from caphuman_jax.evaluation.photos import Photo
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.head.base import HeadModel
from caphuman_jax.io import atomic
from caphuman_jax.person import identity_file


@dataclasses.dataclass(frozen=True)
class Asked:
    """One picture.

    Attributes:
        fields: of its job, see `reference_name` and `photo_name`.
        requests: one for each face that is measured in it, in the order of the job's people.
    """

    fields: Mapping[str, Any]
    requests: tuple[Request, ...]

    @property
    def id(self) -> str:
        """Of the job, of the picture's file, and of its first request."""
        return request_id(self.requests[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """Where a face was asked for in a picture.

    Attributes:
        square: (S, S, 3) uint8, what is measured.
        asked: the requested head, its position in the picture.
        frame: left, top, width and height of the square, as fractions of the picture's.
        values: what else is known of it, see `ImageMeasurement`.
    """

    square: np.ndarray
    asked: HeadParams
    frame: tuple[float, float, float, float] = WHOLE
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def in_picture(self, measured: ImageMeasurement) -> ImageMeasurement:
        """What was measured in the square, with the position in the picture."""
        left, top, width, height = self.frame
        x, y, size = measured.head.position
        position = np.array([left + x * width, top + y * height, size * height])
        head = dataclasses.replace(measured.head, position=position)
        return dataclasses.replace(measured, head=head, values={**measured.values, **self.values})


def request_id(request: Request) -> str:
    """The id of a request in measurements and scores."""
    return f"{request.number:06d}"


def reference_name(person: int) -> str:
    """The identity file of a subject, as jobs name it."""
    return f"{person:05d}{identity_file.ENDING}"


def photo_name(person: int) -> str:
    """The photo of a subject, as jobs name it."""
    return f"{person:05d}.photo"


def of_requests(
    model: HeadModel, subjects: Sequence[Subject], requests: Sequence[Request], seed: int
) -> list[Asked]:
    """A picture from noise for each request; `seed`: of random heads."""
    return [Asked(_fields(model, subjects, one, seed), (one,)) for one in requests]


def write_people(
    folder: Path,
    subjects: Sequence[Subject],
    photos: Sequence[Photo],
    head_name: str,
    keep: bool,
) -> None:
    """Write what jobs refer to.

    Args:
        folder: that the jobs' paths are relative to.
        subjects: the people.
        photos: of the subjects, if jobs edit them; or none.
        head_name: the model's morphable head.
        keep: only write what is missing. Otherwise files may be left of a run with other people.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i, subject in enumerate(subjects):
        path = folder / reference_name(i)
        if not keep or not path.exists():
            identity_file.save(path, subject.person, head_name)
    for i, photo in enumerate(photos):
        path = folder / photo_name(i)
        if not keep or not path.exists():
            source = photo.source()
            atomic.write_bytes(path, source if isinstance(source, bytes) else source.read_bytes())


def files_of(asked: Sequence[Asked]) -> Iterator[tuple[Request, str]]:
    """Each request with the id of its picture."""
    for one in asked:
        for request in one.requests:
            yield request, one.id


def _fields(
    model: HeadModel, subjects: Sequence[Subject], request: Request, seed: int
) -> dict[str, Any]:
    head = prompt_suite.head_numbers(model, subjects[request.person].head, request, seed)
    return {
        "reference": reference_name(request.person),
        "prompt": request.prompt,
        "seed": request.seed,
        **({"head": head} if head else {}),
    }
