"""What the images of a request are made from: who is in them with which head, and the pictures that
ControlNets get.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps

from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head, to_numbers
from caphuman_jax.head.hints import fit_to_aspect, render_hints
from caphuman_jax.head.landmarks68 import landmark_picture
from caphuman_jax.io.images import PhotoSource, photo_name, read_photo
from caphuman_jax.models.prompt import EncodedPrompt, PromptEncoder
from caphuman_jax.person.person import Person, checksum, combine_references, stack_people
from caphuman_jax.pipeline.head_target import place_side_by_side, warn_if_unusual
from caphuman_jax.pipeline.request import LANDMARKS, ControlRequest, Request, SubjectRequest

log = logging.getLogger("caphuman_jax")

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called as a stage begins (done 0) and as its parts are done.

Stages: "photo", "head photo", "hints", "compile", "pictures"."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One person in the images.

    Attributes:
        person: of the reference.
        head_source: of the head photo, if there was one.
        head: the one that is shown.
        hints: (H, W, 9) float32, see `head.hints`; None where they were not rendered.
    """

    person: Person
    head_source: Person | None
    head: Head
    hints: np.ndarray | jax.Array | None


@dataclasses.dataclass(frozen=True, eq=False)
class Conditioning:
    """What the images of a request are made from.

    Attributes:
        request: what was asked for.
        subjects: the people in the images.
        prompts: prompt and negative prompt, if they were encoded.
        controls: {ControlNet: its picture (H, W, 3) uint8}.
        settings: everything that the images are made with, JSON types; see `pipeline.Result`.
    """

    request: Request
    subjects: tuple[Subject, ...]
    controls: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    prompts: tuple[EncodedPrompt, ...] | None = None

    @property
    def batch_key(self) -> tuple:
        """Images whose conditionings have equal keys can be made in one batch: hashable."""
        tokens = stack_people([subject.person for subject in self.subjects])["recognition"]
        prompts = tuple(prompt.kind for prompt in self.prompts or ())
        return self.request.program_key, tokens.shape, prompts


def create_conditioning(
    request: Request,
    head_model: HeadModel,
    analyze: Callable[[PhotoSource, int | None], Person],
    encode: PromptEncoder,
    record: dict[str, Any],
    progress: Progress,
    with_hints: bool = True,
) -> Conditioning:
    """Measure the people of a request, pose their heads and render the hints.

    Args:
        request: what is asked for.
        head_model: the model's head.
        analyze: (photo, number of a face) → Person.
        encode: prompts for the text encoder.
        record: JSON types that say which model this is, for the settings.
        progress: see `Progress`.
        with_hints: whether to render the hints.

    Raises:
        PhotoError: a photo that cannot be read or shows no face (NoFaceError).
        HeadError: a head that cannot be fitted or posed.
    """
    height, width = request.params.shape
    prompts = encode_prompts(request, encode)
    cast = [_measure(subject, request.combine, analyze, progress) for subject in request.subjects]
    targets = place_side_by_side([one.head for one in request.subjects], height, width)
    progress("hints", 0, 1)
    subjects = []
    for (person, source), target in zip(cast, targets):
        head = target.apply(head_model, fit_to_aspect(person.head, height, width), source)
        warn_if_unusual(head_model, head)
        hints = np.asarray(render_hints(head_model, head, height, width)) if with_hints else None
        subjects.append(Subject(person, source, head, hints))
    heads = [subject.head for subject in subjects]
    controls = {
        control.name: control_picture(control.picture, head_model, heads, height, width)
        for control in request.controls
    }
    progress("hints", 1, 1)
    people = [
        {
            "reference": {
                "name": subject.person.name,
                "sha256": subject.person.sha256,
                "face": asked.face,
            },
            "asked_head": target.to_json(subject.head_source),
            "head": to_numbers(subject.head, head_model),
        }
        for asked, subject, target in zip(request.subjects, subjects, targets)
    ]
    settings = {
        "prompt": request.prompt,
        **request.params.to_json(),
        "combine": request.combine,
        "people": people,
        "controls": [_control_to_json(control) for control in request.controls],
        **record,
    }
    return Conditioning(request, tuple(subjects), controls, settings, prompts)


def encode_prompts(request: Request, encode: PromptEncoder) -> tuple[EncodedPrompt, ...]:
    """Prompt and negative prompt of a request. Raises SettingError."""
    texts = request.prompt, request.params.negative_prompt
    encoded = tuple(encode(texts, request.params.prompt_syntax))
    chunks = len(encoded[0].token_ids) // encode.length
    if chunks > 1:
        log.warning(
            "the prompt takes %d chunks of %d tokens; models are trained on one, and follow the "
            "later ones less",
            chunks,
            encode.length - 2,
        )
    return encoded


def control_picture(
    picture: PhotoSource, model: HeadModel, heads: Sequence[Head], height: int, width: int
) -> np.ndarray:
    """The picture (H, W, 3) uint8 of a ControlNet: the landmarks of the wanted heads as dots, or a
    photo cut to the images' shape about its center. Raises PhotoError.
    """
    if isinstance(picture, str) and picture == LANDMARKS:
        return landmark_picture(model, heads, height, width)
    photo = Image.fromarray(read_photo(picture))
    return np.asarray(ImageOps.fit(photo, (width, height), Image.Resampling.BICUBIC))


def _measure(
    asked: SubjectRequest, combine: str, analyze: Callable, progress: Progress
) -> tuple[Person, Person | None]:
    """The person of the references, and that of the head photo."""

    def person(photo, face, stage):
        if isinstance(photo, Person):
            return analyze(photo, face)
        progress(stage, 0, 1)
        measured = analyze(photo, face)
        progress(stage, 1, 1)
        return measured

    references = [person(photo, asked.face, "photo") for photo in asked.references]
    target = asked.head
    source = None if target.photo is None else person(target.photo, target.photo_face, "head photo")
    return combine_references(references, combine), source


def _control_to_json(control: ControlRequest) -> dict[str, Any]:
    picture = control.picture
    if not (isinstance(picture, str) and picture == LANDMARKS):
        name = os.path.basename(photo_name(picture))
        picture = {"name": name, "sha256": checksum(picture)}
    return {"name": control.name, "scale": control.scale, "picture": picture}
