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

from caphuman_jax.head import editing
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head, to_numbers
from caphuman_jax.head.hints import fit_to_aspect, render_hints
from caphuman_jax.head.landmarks68 import landmark_picture
from caphuman_jax.io.images import PhotoSource, photo_name, read_photo
from caphuman_jax.models.prompt import EncodedPrompt, PromptEncoder
from caphuman_jax.person.person import (
    Person,
    checksum,
    combine_references,
    measure_references,
    stack_people,
)
from caphuman_jax.pipeline import canvas as canvases
from caphuman_jax.pipeline import edit_mask, regions, rough_edit
from caphuman_jax.pipeline.canvas import Canvas
from caphuman_jax.pipeline.head_target import HeadTarget, place_side_by_side, warn_if_unusual
from caphuman_jax.pipeline.paste import paste
from caphuman_jax.pipeline.request import (
    EDIT_PROMPT,
    LANDMARKS,
    ControlRequest,
    EditRequest,
    Request,
    SubjectRequest,
)

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
        prompts: prompt, negative prompt and, with regions, that of each person, if they were
            encoded.
        controls: {ControlNet: its picture (H, W, 3) uint8}.
        settings: everything that the images are made with, JSON types; see `pipeline.Result`.
        canvas: the part of a photo that is made again; None: images are made from noise.
        latents: {"known", "visible"}: what `text_to_image.generate` takes of the photo, without a
            batch axis.
        regions: (P, h, w) float32 in [0, 1], the parts of the image that are the people's, at the
            latents' size; None: nobody has words of their own.
    """

    request: Request
    subjects: tuple[Subject, ...]
    controls: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    prompts: tuple[EncodedPrompt, ...] | None = None
    canvas: Canvas | None = None
    latents: dict[str, dict[str, jax.Array]] = dataclasses.field(default_factory=dict)
    regions: np.ndarray | None = None

    @property
    def batch_key(self) -> tuple:
        """Images whose conditionings have equal keys can be made in one batch: hashable."""
        people = [subject.person for subject in self.subjects]
        photos = stack_people(people)["recognition"].shape if people else ()
        prompts = tuple(prompt.kind for prompt in self.prompts or ())
        return self.request.program_key, photos, prompts

    def finish(self, image: np.ndarray) -> np.ndarray:
        """A made image (H, W, 3) uint8 as it is written: pasted into its photo, if it edits one."""
        return image if self.canvas is None else paste(self.canvas, image)


def create_conditioning(
    request: Request,
    head_model: HeadModel,
    analyze: Callable[[PhotoSource, int | None], Person],
    encode: PromptEncoder,
    record: dict[str, Any],
    progress: Progress,
    with_hints: bool = True,
    warn: bool = True,
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
        warn: whether to log a warning for unusual heads.

    Raises:
        PhotoError: a photo that cannot be read or shows no face (NoFaceError).
        HeadError: a head that cannot be fitted or posed.
    """
    if request.edit is not None:
        return _of_photo(request, head_model, analyze, encode, record, progress, with_hints, warn)
    height, width = request.params.shape
    prompts = encode_prompts(request, encode)
    cast = [_measure(subject, request.combine, analyze, progress) for subject in request.subjects]
    in_boxes = [regions.placed(one.head, one.box, height, width) for one in request.subjects]
    targets = place_side_by_side(in_boxes, height, width)
    progress("hints", 0, 1)
    subjects = []
    for (person, source), target in zip(cast, targets):
        head = target.apply(head_model, fit_to_aspect(person.head, height, width), source)
        if warn:
            warn_if_unusual(head_model, head)
        hints = np.asarray(render_hints(head_model, head, height, width)) if with_hints else None
        subjects.append(Subject(person, source, head, hints))
    return _assembled(request, subjects, targets, prompts, head_model, record, progress)


def _assembled(
    request: Request,
    subjects: Sequence[Subject],
    targets: Sequence[HeadTarget],
    prompts: tuple[EncodedPrompt, ...],
    head_model: HeadModel,
    record: dict[str, Any],
    progress: Progress,
    canvas: Canvas | None = None,
) -> Conditioning:
    height, width = request.params.shape
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
            **_region_to_json(asked),
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
    if request.edit is not None and canvas is not None:
        settings["edit"] = _edit_to_json(request.edit) | canvas.to_json()
    return Conditioning(request, tuple(subjects), controls, settings, prompts, canvas)


def encode_prompts(request: Request, encode: PromptEncoder) -> tuple[EncodedPrompt, ...]:
    """Prompt and negative prompt of a request, and with regions that of each person. Raises
    SettingError.
    """
    encoded = tuple(encode(request.texts, request.params.prompt_syntax))
    chunks = len(encoded[0].token_ids) // encode.length
    if chunks > 1:
        log.warning(
            "the prompt takes %d chunks of %d tokens; models are trained on one, and follow the "
            "later ones less",
            chunks,
            encode.length - 2,
        )
    return encoded


def _of_photo(
    request: Request,
    head_model: HeadModel,
    analyze: Callable,
    encode: PromptEncoder,
    record: dict[str, Any],
    progress: Progress,
    with_hints: bool,
    warn: bool,
) -> Conditioning:
    """`create_conditioning` of a request that edits a photo."""
    edit, size = request.edit, request.params.shape
    assert edit is not None
    prompts = encode_prompts(request, encode)
    photo = read_photo(edit.photo)
    if edit.size_step:
        request = dataclasses.replace(
            request,
            params=dataclasses.replace(
                request.params, size=canvases.size_for(photo, request.params.shape, edit.size_step)
            ),
        )
        size = request.params.shape
    shown = person = source = None
    if edit.person:
        progress("photo", 0, 1)
        shown = analyze(edit.photo, edit.face)
        progress("photo", 1, 1)
        (asked,) = request.subjects
        person, source = _measure(asked, request.combine, analyze, progress, shown)
    canvas = canvases.create_canvas(photo, edit, size, shown)
    progress("hints", 0, 1)
    subjects, targets = [], []
    if shown is not None and person is not None:
        target = request.subjects[0].head
        on_canvas = lambda head: canvases.head_on_canvas(
            head_model, head, shown.place, canvas.place, size
        )
        base = person.head
        if person is not shown and request.subjects[0].references:
            base = editing.mix(head_model, base, shown.head, "all")
        old, new = on_canvas(shown.head), on_canvas(target.apply(head_model, base, source))
        if warn:
            warn_if_unusual(head_model, new)
        hints = np.asarray(render_hints(head_model, new, *size)) if with_hints else None
        subjects, targets = [Subject(person, source, new, hints)], [target]
        change = rough_edit.motion(head_model, old, new, canvas.image)
        if not edit.paints and not edit.whole:
            canvas = dataclasses.replace(canvas, motion=change)
            # Words may ask for what the photo does show.
            by_words = edit.mask == "auto" and request.prompt != EDIT_PROMPT
            kind = "face" if by_words else str(edit.mask)
            mask = edit_mask.head_mask(head_model, new, canvas.rough, change, kind)
            canvas = dataclasses.replace(canvas, mask=mask)
    if warn:
        canvases.warn_if_soft(canvas)
    return _assembled(request, subjects, targets, prompts, head_model, record, progress, canvas)


def control_picture(
    picture: PhotoSource, model: HeadModel, heads: Sequence[Head], height: int, width: int
) -> np.ndarray:
    """The picture (H, W, 3) uint8 of a ControlNet: the landmarks of the wanted heads as dots, or a
    photo cut to the images' shape about its center. Raises PhotoError.
    """
    if shows_landmarks(picture):
        return landmark_picture(model, heads, height, width)
    photo = Image.fromarray(read_photo(picture))
    return np.asarray(ImageOps.fit(photo, (width, height), Image.Resampling.BICUBIC))


def shows_landmarks(picture: PhotoSource) -> bool:
    """Whether a ControlNet's picture is `LANDMARKS` instead of a photo."""
    return isinstance(picture, str) and picture == LANDMARKS


def _measure(
    asked: SubjectRequest,
    combine: str,
    analyze: Callable,
    progress: Progress,
    shown: Person | None = None,
) -> tuple[Person, Person | None]:
    """The person of the references, or the one that an edited photo shows; and that of the head
    photo.
    """

    def person(photo, face, stage):
        if isinstance(photo, Person):
            return analyze(photo, face)
        progress(stage, 0, 1)
        measured = analyze(photo, face)
        progress(stage, 1, 1)
        return measured

    references = measure_references(
        asked.references, lambda photo: person(photo, asked.face, "photo")
    )
    target = asked.head
    source = None if target.photo is None else person(target.photo, target.photo_face, "head photo")
    reference = shown if shown and not references else combine_references(references, combine)
    return reference, source


def _edit_to_json(edit: EditRequest) -> dict[str, Any]:
    mask = edit.mask
    if edit.paints:
        mask = {"name": os.path.basename(photo_name(mask)), "sha256": checksum(mask)}
    return {
        "photo": {
            "name": os.path.basename(photo_name(edit.photo)),
            "sha256": checksum(edit.photo),
            "face": edit.face,
        },
        "mask": mask,
        "person": edit.person,
    }


def _region_to_json(asked: SubjectRequest) -> dict[str, Any]:
    """What is recorded of a person's part of the picture; {} where they have none."""
    region: dict[str, Any] = {
        "prompt": asked.prompt,
        "box": asked.box and list(asked.box),
        "mask": asked.mask,
    }
    if asked.mask is not None:
        name = os.path.basename(photo_name(asked.mask))
        region["mask"] = {"name": name, "sha256": checksum(asked.mask)}
    return {name: value for name, value in region.items() if value is not None}


def _control_to_json(control: ControlRequest) -> dict[str, Any]:
    picture = control.picture
    if not shows_landmarks(picture):
        name = os.path.basename(photo_name(picture))
        picture = {"name": name, "sha256": checksum(picture)}
    return {"name": control.name, "scale": control.scale, "picture": picture}
