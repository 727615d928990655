"""What the pictures of a request are made from: who stands where with which head, and the pictures
that ControlNets get.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image, ImageOps

from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.editing import parse_take
from caphuman_jax.head.head import Head
from caphuman_jax.head.landmarks68 import landmark_picture
from caphuman_jax.io.images import PhotoSource, photo_name, read_photo
from caphuman_jax.person.person import Person, WantedHead, checksum, stack_people
from caphuman_jax.pipeline.request import LANDMARKS, OWN_SETTINGS, Request


@dataclasses.dataclass(frozen=True, eq=False)
class Appearance:
    """One person in the pictures. person: of the reference; lender: of the head photo, if there was
    one; head: the one that was asked for; hints: (H, W, 9) float32, see `head.hints`; None where
    they were not rendered.
    """

    person: Person
    lender: Person | None
    head: Head
    hints: np.ndarray | jax.Array | None


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What the pictures of a request are made from; of `Pipeline.scene`. controls and settings: see
    `pipeline.Result`.
    """

    request: Request
    people: tuple[Appearance, ...]
    controls: dict[str, np.ndarray]
    settings: dict

    @property
    def kind(self) -> tuple:
        """Scenes of one kind can be made in one batch: hashable."""
        shared = json.dumps(
            {
                name: value
                for name, value in self.request.settings.items()
                if name not in OWN_SETTINGS
            }
        )
        strengths = tuple((name, strength) for name, _, strength in self.request.controls)
        return (
            self.request.size,
            shared,
            strengths,
            stack_people([look.person for look in self.people])["recognition"].shape,
        )


def side_by_side(wanted: list[WantedHead], height: int, width: int) -> list[WantedHead]:
    """With several people, those whose position is not asked for get a place of their own, left to
    right.
    """
    if len(wanted) == 1:
        return wanted
    placed = []
    for i, want in enumerate(wanted):
        by_photo = (
            want.photo is not None
            and want.framing == "photo"
            and "position" in parse_take(want.take)
        )
        if want.position is None and not by_photo:
            size = min(0.45, 0.62 * width / height / len(wanted))
            want = dataclasses.replace(
                want, position=((i + 0.5) / len(wanted), 0.5, round(size, 3))
            )
        placed.append(want)
    return placed


def control_picture(
    picture: PhotoSource, model: HeadModel, heads: Sequence[Head], height: int, width: int
) -> np.ndarray:
    """(H, W, 3) uint8: the dots of the wanted heads, or a photo cut to the pictures' shape about
    its center. Raises PhotoError.
    """
    if isinstance(picture, str) and picture == LANDMARKS:
        return landmark_picture(model, heads, height, width)
    return np.asarray(
        ImageOps.fit(
            Image.fromarray(read_photo(picture)), (width, height), Image.Resampling.BICUBIC
        )
    )


def picture_record(picture: PhotoSource) -> str | dict:
    """A control's picture as the settings record it: "landmarks", or a photo's name and checksum."""
    if isinstance(picture, str) and picture == LANDMARKS:
        return LANDMARKS
    return {
        "name": os.path.basename(photo_name(picture)),
        "sha256": checksum(picture, read_photo(picture)),
    }
