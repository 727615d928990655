"""What an evaluation collects: people, outcomes of requests, and what was measured in images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.head import editing
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.spherical_harmonics import SH_CONSTANTS

RECOGNIZERS = ("dlib", "mobilefacenet")
ARCFACE = "arcface"
"""A third recognizer, where the user has a pack of insightface."""
WHOLE = (0.0, 0.0, 1.0, 1.0)
"""The frame of a whole image."""


@dataclasses.dataclass(frozen=True)
class HeadParams:
    """A head's parameters as they are compared.

    Attributes:
        angles: (3,) yaw, pitch, roll in degrees.
        position: (3,) x, y and size as fractions of the image's side.
        expression: (E,) weights.
        light: (2,) from the right and from above, relative to the even part, see `light_from`.
    """

    angles: np.ndarray
    position: np.ndarray
    expression: np.ndarray
    light: np.ndarray

    @classmethod
    def of(cls, model: HeadModel, head: Head) -> HeadParams:
        """The parameters of a head."""
        light = np.asarray(head.light)
        return cls(
            np.asarray(head.angles),
            np.array(editing.position_of(model, head)),
            np.asarray(head.expression),
            light_from(light),
        )

    @classmethod
    def missing(cls, model: HeadModel) -> HeadParams:
        """NaN everywhere: no face was found."""
        return cls(*(np.full(n, np.nan) for n in (3, 3, len(model.expression_names), 2)))


def light_from(light: np.ndarray) -> np.ndarray:
    """(2,) how much more light comes from the right of the image and from above than evenly, from
    SH light (9, 3): the first-order terms along x and y over the constant one, averaged over the
    colors. 0 means the same amount from either side.
    """
    terms = np.asarray(light, np.float64).mean(axis=-1) * SH_CONSTANTS
    return terms[1:3] / max(terms[0], 1e-6)


@dataclasses.dataclass(frozen=True)
class ImageMeasurement:
    """What was measured in an image.

    Attributes:
        faces: number of faces found.
        head: of the largest face.
        vectors: {recognizer: vector} of the largest face; NaN without a face.
        values: {name: number, text, array or None}, see `metrics.base.Metric.reads`.
    """

    faces: int
    head: HeadParams
    vectors: dict[str, np.ndarray]
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One person of the run.

    Attributes:
        name: of the photo.
        picture: (S, S, 3) uint8, the photo as the model frames it.
        head: fitted in it.
        person: what the generator takes.
        vectors: {recognizer: vector} of the photo.
        features: (49, 512) of the shipped recognizer for the photo, where a suite needs them.
        values: of the picture, as in `ImageMeasurement`; {} where they were not read.
    """

    name: str
    picture: np.ndarray
    head: Head
    person: Any
    vectors: dict[str, np.ndarray]
    features: np.ndarray | None = None
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a request.

    Attributes:
        request: None for the measurement floor.
        person: index of the subject.
        asked: the requested head.
        own: the subject's own head.
        measured: in the generated image.
        file: of the generated image, or of the square of the face in it, relative to the report.
        frame: left, top, width and height of that square, as fractions of the image's.
    """

    request: Request | None
    person: int
    asked: HeadParams
    own: HeadParams
    measured: ImageMeasurement
    file: str | None = None
    frame: tuple[float, float, float, float] = WHOLE

    @property
    def asked_in_square(self) -> HeadParams:
        """The requested head, with its position in the square."""
        left, top, width, height = self.frame
        x, y, size = self.asked.position
        position = np.array([(x - left) / width, (y - top) / height, size / height])
        return dataclasses.replace(self.asked, position=position)
