"""What is asked for, checked before any photo is read, with a model's configuration alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion.sampling_field import side_step
from caphuman_jax.diffusion.sampling_params import SamplingParams
from caphuman_jax.errors import SettingError
from caphuman_jax.head.base import HeadModel
from caphuman_jax.io import checks
from caphuman_jax.io.files import printable, valid_text
from caphuman_jax.io.images import PhotoSource
from caphuman_jax.models.prompt import PromptEncoder, parse
from caphuman_jax.person.person import COMBINE, Person
from caphuman_jax.pipeline.edit_mask import MASKS
from caphuman_jax.pipeline.head_target import HeadTarget

log = logging.getLogger("caphuman_jax")

LANDMARKS = "landmarks"
"""In place of a control's photo: the 68 landmarks of the wanted heads as dots."""
SUBJECT_FIELDS = ("reference", "head", "face")
REGION_FIELDS = ("prompt", "box", "mask")
PERSON_FIELDS = SUBJECT_FIELDS + REGION_FIELDS
"""What each of several people has."""
EDIT_FIELDS = ("photo", "mask", "face", "person")
CONTROL_FIELDS = ("name", "picture", "scale")

EDIT_PROMPT = "a photo of a person"
"""Prompt of an edit that has none."""
EDIT_DENOISE = 0.5
"""`denoise` of an edit that has none: enough to correct what moving the photo's pixels leaves."""
_DENOISE_OF_OTHERS = 0.8
"""The same where another person, or none, is put into the photo."""

Reference = PhotoSource | Person
"""A photo, an identity file, or a person who was measured before."""


@dataclasses.dataclass(frozen=True)
class SubjectRequest:
    """One person to be shown.

    Attributes:
        references: photos, identity files or persons, all of one person.
        head: the head that is wanted.
        face: number of the face in the photos, 0 the largest; None: the largest, with a warning
            where there are several.
        prompt: what this person's part of the picture shows; None: what the picture does.
        box: that part, (x0, y0, x1, y1) in widths and heights of the picture.
        mask: or a picture of the same shape that is white there. Without either, it is the head and
            what is below it.
    """

    references: tuple[Reference, ...]
    head: HeadTarget = HeadTarget()
    face: int | None = None
    prompt: str | None = None
    box: tuple[float, float, float, float] | None = None
    mask: PhotoSource | None = None

    @property
    def has_region(self) -> bool:
        """Whether a part of the picture is this person's."""
        return any(getattr(self, name) is not None for name in REGION_FIELDS)


@dataclasses.dataclass(frozen=True)
class ControlRequest:
    """A ControlNet of the model, its picture (a photo or `LANDMARKS`) and its weight."""

    name: str
    picture: PhotoSource
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class EditRequest:
    """A photo that is changed instead of making a picture from noise.

    Attributes:
        photo: the photo.
        mask: what of it is made again: one of `edit_mask.MASKS`, or a mask picture of the photo's
            size, white where it is made again.
        face: number of the face that is changed, 0 the largest.
        person: whether there is one; without, the photo's masked part follows the prompt alone.
        size_step: sides of a canvas that takes the photo's shape are multiples of this; 0: it has
            the size that is asked for.
    """

    photo: PhotoSource
    mask: str | PhotoSource = "auto"
    face: int | None = None
    person: bool = True
    size_step: int = 0

    @property
    def paints(self) -> bool:
        """Whether the mask is a picture."""
        return not (isinstance(self.mask, str) and self.mask in MASKS)

    @property
    def whole(self) -> bool:
        """Whether the whole photo is made again."""
        return isinstance(self.mask, str) and self.mask == "whole"


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Images to be made; of `create_request`.

    Attributes:
        prompt: what they show.
        params: the sampling numbers, resolved for the model.
        subjects: the people in them.
        combine: how several photos of one person are combined, see `person.combine_references`.
        controls: the ControlNets that are used.
        edit: the photo that is changed; None: pictures are made from noise.
    """

    prompt: str
    params: SamplingParams
    subjects: tuple[SubjectRequest, ...]
    combine: str = "mean"
    controls: tuple[ControlRequest, ...] = ()
    edit: EditRequest | None = None

    @property
    def numbers(self) -> range:
        """Numbers of the images; each depends on the seed and its own number alone."""
        first = self.params.first_image
        return range(first, first + self.params.num_images)

    @property
    def program_key(self) -> tuple:
        """What requests share whose images can be made in one batch: hashable."""
        controls = tuple((control.name, control.scale) for control in self.controls)
        return len(self.subjects), self.params.shared, controls, self.photo, self.has_regions

    @property
    def texts(self) -> list[str]:
        """Prompt and negative prompt, and with regions the prompt of each person."""
        prompts = [one.prompt for one in self.subjects] if self.has_regions else []
        own = [self.prompt if prompt is None else prompt for prompt in prompts]
        return [self.prompt, self.params.negative_prompt, *own]

    @property
    def has_regions(self) -> bool:
        """Whether parts of the picture have prompts of their own."""
        return any(subject.has_region for subject in self.subjects)

    @property
    def photo(self) -> Literal["whole", "masked"] | None:
        """What of a photo images begin with, see `SamplingParams.program_inputs`."""
        return None if self.edit is None else "whole" if self.edit.whole else "masked"


def create_request(
    config: ModelConfig,
    head_model: HeadModel,
    *,
    prompt: str | None = None,
    reference: Reference | Sequence[Reference] | None = None,
    head: HeadTarget | Mapping | PhotoSource | Person | None = None,
    face: int | None = None,
    people: Sequence[Mapping] = (),
    combine: str = "mean",
    controls: Sequence[Mapping] = (),
    edit: Mapping | None = None,
    **sampling: Any,
) -> Request:
    """Check a request.

    Args:
        config: the model's.
        head_model: the model's head, whose expressions can be asked for.
        prompt: what the images show.
        reference: photo, identity file or Person; or several of one person.
        head: None (the reference's own), a photo, a `HeadTarget`, or a dict of its fields such as
            {"yaw": 20}.
        face: number of the face in the reference photo, 0 the largest.
        people: instead of these three, for several people in one picture: a dict of them each,
            which may also have a prompt, and a box or a mask (see `SubjectRequest`). Those whose
            position is not asked for stand in their box, or side by side.
        combine: "mean" of the identity tokens of several photos, or "stack", which gives the model
            the tokens of all of them.
        controls: ControlNets of the model, a {"name", "picture", "scale"} each.
        edit: change a photo instead: the fields of `EditRequest`, "photo" at least. The prompt may
            then be left out, and `reference` is who is put into the photo; None: its own person.
        sampling: fields of `SamplingParams`.

    Raises:
        SettingError: a setting that is unknown, of the wrong type or out of its range.
        HeadError: a head that cannot be asked for.
    """
    changed = None if edit is None else create_edit(edit, reference, people, sampling, config)
    if changed is not None:
        prompt = EDIT_PROMPT if prompt is None else prompt
        sampling = {**sampling, "denoise": edit_denoise(changed, reference, sampling)}
    elif sampling.get("denoise") is not None:
        raise SettingError("denoise is for a photo that is edited; give edit, or leave it out")
    if not isinstance(prompt, str):
        raise SettingError(f"prompt must be a text, not {type(prompt).__name__}")
    for name, text in (("prompt", prompt), ("negative_prompt", sampling.get("negative_prompt"))):
        if isinstance(text, str) and text != valid_text(text):
            raise SettingError(
                f"{name} holds bytes that are not UTF-8 text: {printable(text)[:80]}"
            )
    if combine not in COMBINE:
        raise SettingError(f"combine must be {' or '.join(COMBINE)}, not {combine!r}")
    params = SamplingParams.create(config, **sampling)
    check_prompts(prompt, params)
    alone = {"reference": reference, "head": head, "face": face}
    if people and any(value is not None for value in alone.values()):
        raise SettingError(
            "reference, head and face are for one person; with people, each of them has their own"
        )
    if changed is not None:
        params.first_step(config)
    shown = people or ([alone] if changed is None or changed.person else [])
    syntax = params.prompt_syntax
    subjects = tuple(_subject(one, head_model, syntax, changed is not None) for one in shown)
    checked = create_controls(controls, config)
    return Request(prompt, params, subjects, combine, checked, changed)


def edit_denoise(edit: EditRequest, reference: Any, sampling: Mapping[str, Any]) -> Any:
    """`denoise` of an edit: what is given, or its default."""
    given = sampling.get("denoise")
    own = edit.person and reference is None and not edit.paints
    return given if given is not None else EDIT_DENOISE if own else _DENOISE_OF_OTHERS


def create_edit(
    edit: Mapping,
    reference: Any,
    people: Sequence[Mapping],
    sampling: Mapping[str, Any],
    config: ModelConfig,
) -> EditRequest:
    """Check the photo of a request that is changed.

    Raises:
        SettingError: an unknown field, or fields that contradict each other.
    """
    unknown = set(edit) - set(EDIT_FIELDS)
    if unknown or edit.get("photo") is None:
        raise SettingError(
            f"edit takes {', '.join(EDIT_FIELDS)}, and photo at least, not {', '.join(edit)}"
        )
    if people:
        raise SettingError("an edit changes one face; choose it with face, and leave out people")
    given = {name: value for name, value in edit.items() if value is not None}
    for name in ("photo", "mask"):
        checks.path(f"{name} of edit", given.get(name))
    changed = EditRequest(**given)
    if changed.face is not None:
        checks.whole("face", changed.face, 0, 10_000)
    if not changed.person and (reference is not None or changed.face is not None):
        raise SettingError("without a person, an edit takes neither reference nor face")
    if not changed.person and not changed.paints and not changed.whole:
        raise SettingError(
            f"the mask {changed.mask!r} is that of a person; without one, take whole or a mask "
            "picture"
        )
    own = changed.whole and sampling.get("size") is None
    step = side_step(config)
    return dataclasses.replace(changed, size_step=step if own else 0)


def check_prompts(prompt: str, params: SamplingParams) -> None:
    """Raise SettingError for a prompt or negative prompt whose syntax cannot be followed."""
    if params.prompt_syntax:
        for text in (prompt, params.negative_prompt):
            parse(text)


def create_controls(controls: Sequence[Mapping], config: ModelConfig) -> tuple[ControlRequest, ...]:
    """Check the ControlNets of a request.

    Raises:
        SettingError: a ControlNet that the model does not have or that is named twice, or a wrong
            weight.
    """
    checked = []
    for control in controls:
        if set(control) - set(CONTROL_FIELDS) or not {"name", "picture"} <= set(control):
            raise SettingError(
                f"a control has a name, a picture and a scale, not {', '.join(map(str, control))}"
            )
        name, scale = control["name"], control.get("scale", 1.0)
        if name not in config.controlnets:
            there = ", ".join(config.controlnets) or "none; caphuman import --controlnet adds one"
            raise SettingError(
                f"the model {config.name} has no ControlNet named {name!r}; it has {there}"
            )
        scale = checks.number("scale of a control", scale, 0, 10)
        checks.path("picture of a control", control["picture"])
        checked.append(ControlRequest(name, control["picture"], scale))
    names = [control.name for control in checked]
    if len(set(names)) < len(names):
        raise SettingError(f"each ControlNet can be used once; asked for: {', '.join(names)}")
    return tuple(checked)


def warn_of_embeddings(prompts: Sequence[str], encoder: PromptEncoder) -> None:
    """Log a warning where prompts name textual-inversion embeddings that are not loaded."""
    words = dict.fromkeys(word for text in prompts for word in encoder.unread_embeddings(text))
    if words:
        first = next(iter(words)).strip("<>").removeprefix("embedding:")
        log.warning(
            "%s: read as plain text, since no such embedding is loaded; if it is one, add its "
            "file: --embedding %s.safetensors[=WORD]",
            ", ".join(words),
            first,
        )


def warn_of_prompt(prompt: str, syntax: bool, encoder: PromptEncoder) -> None:
    """Log a warning where nothing says what the images show, or in words that the model was not
    trained with.
    """
    if not prompt.strip():
        log.warning('the prompt is empty; say what the picture shows: "a photo of a person"')
    if unknown := encoder.unknown_words(prompt, syntax):
        log.warning(
            "the model was not trained with these words of the prompt, so they have little effect: "
            "%s",
            ", ".join(unknown),
        )


def warn_if_other_size(params: SamplingParams, config: ModelConfig) -> None:
    """Log a warning where images have another size than the model was trained on."""
    side, (height, width) = config.image_size, params.shape
    if (width, height) != (side, side):
        log.warning(
            "the model was trained on %dx%d pixels; %dx%d may come out worse",
            side,
            side,
            width,
            height,
        )


def check_region(one: Mapping, syntax: bool) -> dict[str, Any]:
    """The fields of a person that say what their part of the picture shows, and where it is.

    Args:
        one: the person's fields.
        syntax: see `prompt_syntax` of `SamplingParams`.

    Raises:
        SettingError: a wrong prompt or box, or a box and a mask.
    """
    region = {name: one[name] for name in REGION_FIELDS if one.get(name) is not None}
    prompt, box = region.get("prompt"), region.get("box")
    if prompt is not None:
        if not isinstance(prompt, str) or prompt != valid_text(prompt):
            raise SettingError(f"the prompt of a person must be a text, not {prompt!r}")
        if syntax:
            parse(prompt)
    if box is not None:
        if "mask" in region:
            raise SettingError("a person has a box or a mask, not both")
        region["box"] = _box(box)
    return region


def _box(box: Any) -> tuple[float, float, float, float]:
    if isinstance(box, str) or not hasattr(box, "__len__") or len(box) != 4:
        raise SettingError(f"box is x0, y0, x1, y1 in parts of the picture, not {box!r}")
    x0, y0, x1, y1 = (checks.number("box", value, 0, 1) for value in box)
    if x0 >= x1 or y0 >= y1:
        raise SettingError(f"box {box} is empty: x0 must be less than x1, and y0 less than y1")
    return x0, y0, x1, y1


def _subject(
    one: Mapping, head_model: HeadModel, syntax: bool, edited: bool = False
) -> SubjectRequest:
    unknown = set(one) - set(PERSON_FIELDS)
    if unknown:
        raise SettingError(
            f"a person has {', '.join(PERSON_FIELDS)}, not {', '.join(sorted(unknown))}"
        )
    references = one.get("reference")
    references = tuple(references) if isinstance(references, (list, tuple)) else (references,)
    if edited and references == (None,):
        references = ()  # the photo's own person
    elif not references or any(photo is None for photo in references):
        raise SettingError("a reference photo is needed for each person")
    for name, photos in (("reference", references), ("mask", (one.get("mask"),))):
        for photo in photos:
            checks.path(name, photo)
    target = HeadTarget.of(one.get("head"))
    target.check(head_model)
    return SubjectRequest(references, target, one.get("face"), **check_region(one, syntax))
