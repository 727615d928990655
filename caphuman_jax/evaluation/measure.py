"""What a finished picture shows, estimated anew: face, head, recognition vectors, colors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import jax
import numpy as np

from caphuman_jax.face import recognition, segmentation
from caphuman_jax.face.colors import BACKGROUND, color_word, measure_colors
from caphuman_jax.face.face import Face, find_faces
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.head import editing
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.fitting import heads_from_photos
from caphuman_jax.head.head import Head, unstack
from caphuman_jax.head.spherical_harmonics import SH_CONSTANTS

RECOGNIZERS = ("dlib", "mobilefacenet")
GREY_CHROMA = 6.0  # mean Lab chroma below which a picture counts as black-and-white


@dataclasses.dataclass(frozen=True)
class HeadNumbers:
    """A head's numbers as compared: angles (3,) yaw, pitch, roll in degrees; position (3,) x, y,
    size relative to the picture; expression (E,) weights; light (2,) from the right and from above,
    relative to the even part.
    """

    angles: np.ndarray
    position: np.ndarray
    expression: np.ndarray
    light: np.ndarray

    @classmethod
    def of(cls, model: HeadModel, head: Head) -> HeadNumbers:
        """The numbers of a head."""
        light = np.asarray(head.light)
        return cls(
            np.asarray(head.angles),
            np.array(editing.position_of(model, head)),
            np.asarray(head.expression),
            light_from(light),
        )

    @classmethod
    def missing(cls, model: HeadModel) -> HeadNumbers:
        """NaN everywhere: no face was found."""
        return cls(*(np.full(n, np.nan) for n in (3, 3, len(model.expression_names), 2)))


def light_from(light: np.ndarray) -> np.ndarray:
    """(2,) how much more light comes from the right of the picture and from above than evenly, from
    SH light (9, 3).

    The first-order terms along x and y over the constant one, colors averaged. 0: as much from
    either side."""
    terms = np.asarray(light, np.float64).mean(axis=-1) * SH_CONSTANTS
    return terms[1:3] / max(terms[0], 1e-6)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a picture shows: faces found; numbers of the largest face's head; vectors (a
    recognizer's name to a vector; NaN without a face); chroma, the mean over the picture in Lab;
    background, its color word or None.
    """

    faces: int
    numbers: HeadNumbers
    vectors: dict[str, np.ndarray]
    chroma: float
    background: str | None


def look(model: HeadModel, pictures: Sequence[np.ndarray]) -> list[Seen]:
    """Estimate anew what pictures (S, S, 3) uint8 of one size show. Compiled once for a number of
    pictures and their size.
    """
    found = [find_faces(picture) for picture in pictures]
    heads = _fit(model, pictures, [faces[0] if faces else None for faces in found])
    return [
        _seen(model, picture, faces, head) for picture, faces, head in zip(pictures, found, heads)
    ]


def recognition_vectors(picture: np.ndarray, landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Vectors of one face by each of RECOGNIZERS."""
    return {
        "dlib": recognition.dlib_vector(picture, landmarks),
        "mobilefacenet": recognition.identity(picture, landmarks)[0],
    }


def _fit(
    model: HeadModel, pictures: Sequence[np.ndarray], faces: Sequence[Face | None]
) -> list[Head | None]:
    """Heads; the batch keeps its size, so that the fit is compiled once: a face stands in where
    there is none.
    """
    known = next((face for face in faces if face), None)
    if known is None:
        return [None] * len(faces)
    filled = [face or known for face in faces]
    landmarks = np.stack([face.landmarks for face in filled]).astype(np.float32)
    expression = np.stack(
        [model.expression_from_arkit(expression_names(), face.expression) for face in filled]
    )
    masks = np.stack(
        [
            segmentation.face_mask(segmentation.parse_face(face.landmarks, p.shape[:2]))
            for face, p in zip(filled, pictures)
        ]
    )
    heads = heads_from_photos(
        model,
        np.stack(pictures).astype(np.float32) / 255,
        landmarks,
        expression,
        masks.astype(np.float32),
    )
    return [head if face else None for head, face in zip(unstack(jax.device_get(heads)), faces)]


def _seen(model, picture, faces, head):
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    chroma = float(np.linalg.norm(lab[..., 1:], axis=-1).mean())
    if not faces:
        vectors = {
            "dlib": np.full(128, np.nan, np.float32),
            "mobilefacenet": np.full(192, np.nan, np.float32),
        }
        return Seen(0, HeadNumbers.missing(model), vectors, chroma, None)
    size = picture.shape[0]
    landmarks = faces[0].landmarks
    person = cv2.resize(segmentation.person_mask(picture), (256, 256), interpolation=cv2.INTER_AREA)
    colors = measure_colors(picture, person, landmarks / size, np.array([0, 0, 1, 1], np.float32))
    background = color_word(colors[BACKGROUND, :3]) if colors[BACKGROUND, 3] > 0.04 else None
    return Seen(
        len(faces),
        HeadNumbers.of(model, head),
        recognition_vectors(picture, landmarks),
        chroma,
        background,
    )
