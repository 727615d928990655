"""What is asked for, checked before any photo is read, with a model's configuration alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import sampling_params
from caphuman_jax.diffusion.sampling_params import SamplingParams
from caphuman_jax.errors import SettingError
from caphuman_jax.head.base import HeadModel
from caphuman_jax.io.images import PhotoSource
from caphuman_jax.models.prompt import parse
from caphuman_jax.person.person import COMBINE, Person
from caphuman_jax.pipeline.head_target import HeadTarget

log = logging.getLogger("caphuman_jax")

LANDMARKS = "landmarks"
"""In place of a control's photo: the 68 landmarks of the wanted heads as dots."""
SUBJECT_FIELDS = ("reference", "head", "face")
CONTROL_FIELDS = ("name", "picture", "scale")

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
    """

    references: tuple[Reference, ...]
    head: HeadTarget = HeadTarget()
    face: int | None = None


@dataclasses.dataclass(frozen=True)
class ControlRequest:
    """A ControlNet of the model, its picture (a photo or `LANDMARKS`) and its weight."""

    name: str
    picture: PhotoSource
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Images to be made; of `create_request`.

    Attributes:
        prompt: what they show.
        params: the sampling numbers, resolved for the model.
        subjects: the people in them.
        combine: how several photos of one person are combined, see `person.combine_references`.
        controls: the ControlNets that are used.
    """

    prompt: str
    params: SamplingParams
    subjects: tuple[SubjectRequest, ...]
    combine: str = "mean"
    controls: tuple[ControlRequest, ...] = ()

    @property
    def numbers(self) -> range:
        """Numbers of the images; each depends on the seed and its own number alone."""
        first = self.params.first_image
        return range(first, first + self.params.num_images)

    @property
    def program_key(self) -> tuple:
        """What requests share whose images can be made in one batch: hashable."""
        controls = tuple((control.name, control.scale) for control in self.controls)
        return len(self.subjects), self.params.shared, controls


def create_request(
    config: ModelConfig,
    head_model: HeadModel,
    *,
    prompt: str,
    reference: Reference | Sequence[Reference] | None = None,
    head: HeadTarget | Mapping | PhotoSource | Person | None = None,
    face: int | None = None,
    people: Sequence[Mapping] = (),
    combine: str = "mean",
    controls: Sequence[Mapping] = (),
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
        people: instead of these three, for several people in one picture: a dict of them each.
            Those whose position is not asked for stand side by side.
        combine: "mean" of the identity tokens of several photos, or "stack", which gives the model
            the tokens of all of them.
        controls: ControlNets of the model, a {"name", "picture", "scale"} each.
        sampling: fields of `SamplingParams`.

    Raises:
        SettingError: a setting that is unknown, of the wrong type or out of its range.
        HeadError: a head that cannot be asked for.
    """
    if not isinstance(prompt, str):
        raise SettingError(f"prompt must be a text, not {type(prompt).__name__}")
    if combine not in COMBINE:
        raise SettingError(f"combine must be {' or '.join(COMBINE)}, not {combine!r}")
    params = SamplingParams.create(config, **sampling)
    check_prompts(prompt, params)
    alone = {"reference": reference, "head": head, "face": face}
    if people and any(value is not None for value in alone.values()):
        raise SettingError(
            "reference, head and face are for one person; with people, each of them has their own"
        )
    subjects = tuple(_subject(one, head_model) for one in people or [alone])
    return Request(prompt, params, subjects, combine, create_controls(controls, config))


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
        scale = sampling_params.number("scale of a control", scale, 0, 10)
        checked.append(ControlRequest(name, control["picture"], scale))
    names = [control.name for control in checked]
    if len(set(names)) < len(names):
        raise SettingError(f"each ControlNet can be used once; asked for: {', '.join(names)}")
    return tuple(checked)


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


def _subject(one: Mapping, head_model: HeadModel) -> SubjectRequest:
    unknown = set(one) - set(SUBJECT_FIELDS)
    if unknown:
        raise SettingError(
            f"a person has a reference, a head and a face, not {', '.join(sorted(unknown))}"
        )
    references = one.get("reference")
    references = tuple(references) if isinstance(references, (list, tuple)) else (references,)
    if not references or any(photo is None for photo in references):
        raise SettingError("a reference photo is needed for each person")
    target = HeadTarget.of(one.get("head"))
    target.check(head_model)
    return SubjectRequest(references, target, one.get("face"))
