"""A job's fields to a `Request`, checked field by field with the model's configuration alone."""

from __future__ import annotations

import difflib
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion.sampling_params import FIELDS, SamplingParams
from caphuman_jax.errors import CapHumanError, SettingError
from caphuman_jax.head import head_json
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.person.person import COMBINE
from caphuman_jax.pipeline.edit_mask import MASKS
from caphuman_jax.pipeline.head_target import HeadTarget
from caphuman_jax.pipeline.request import (
    EDIT_PROMPT,
    LANDMARKS,
    PERSON_FIELDS,
    REGION_FIELDS,
    SUBJECT_FIELDS,
    ControlRequest,
    EditRequest,
    Request,
    SubjectRequest,
    check_prompts,
    check_region,
    create_controls,
    create_edit,
    edit_denoise,
)

JOB_FIELDS = ("prompt", *SUBJECT_FIELDS, "people", "combine", "controls", "edit", *FIELDS)
"""The fields of a job, besides `id` and `product`."""


FindPhoto = Callable[[str, Path], tuple[str | None, str]]


def find_in_folder(photo: str, folder: Path) -> tuple[str | None, str]:
    """(what is wrong or None, the absolute path) of a photo that is named relative to a folder."""
    path = folder / photo
    # Not `Path.is_file`, which raises OSError for a name that is too long.
    if os.path.isfile(path):
        problem = None
    elif os.path.exists(path):
        problem = f"{path} is not a regular file; check the path"
    else:
        problem = f"{path} does not exist; check the path"
    return problem, str(path.absolute())


_MOST_KNOWN = 100_000


class Checker:
    """checker(fields, folder) → (what is wrong, the request, or None if anything is).

    Every distinct value is checked once, and equal values share one object.

    Args:
        config: the model's.
        find: (a photo as a job names it, the folder of the job) → (what is wrong or None, its
            path). Every name of a file goes through it; None: `find_in_folder`.
    """

    def __init__(self, config: ModelConfig, find: FindPhoto | None = None):
        self._config, self._head_model = config, load_head(config.head)
        self._find = find or find_in_folder
        self._known: dict[tuple, tuple[Any, Any]] = {}
        self._bases: dict[str, SamplingParams] = {}  # by their settings, without an image's own

    def trim(self) -> None:
        """Forget what was checked before, if that is much. Objects of equal values are no longer
        the same ones afterwards."""
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
            self._bases.clear()

    def __call__(self, fields: Mapping[str, Any], folder: Path) -> tuple[list[str], Request | None]:
        wrong = [
            f"{name}: there is no such field{nearest(name, JOB_FIELDS)}"
            for name in fields
            if name not in JOB_FIELDS
        ]
        fields = {name: value for name, value in fields.items() if value is not None}
        edit = self._edit(fields, folder, wrong)
        if edit is not None:
            denoise = edit_denoise(edit, fields.get("reference"), fields)
            fields = {"prompt": EDIT_PROMPT, **fields, "denoise": denoise}
        elif "edit" not in fields and "denoise" in fields:
            wrong.append("denoise: is for a photo that is edited; name it with edit")
        prompt, combine = fields.get("prompt"), fields.get("combine", "mean")
        if prompt is None:
            wrong.append("prompt: is missing; it says what the picture shows")
        elif not isinstance(prompt, str):
            wrong.append(f"prompt: must be a text, not {prompt!r}")
        if combine not in COMBINE:
            wrong.append(f"combine: must be {' or '.join(COMBINE)}, not {combine!r}")
        params = self._params(fields, wrong)
        if isinstance(prompt, str) and params is not None:
            try:
                check_prompts(prompt, params)
            except CapHumanError as problem:
                wrong.append(f"prompt: {problem}")
        subjects = tuple(self._subjects(fields, folder, wrong))
        controls = self._controls(fields.get("controls", []), folder, wrong)
        if wrong or prompt is None or params is None:
            return wrong, None
        return wrong, Request(prompt, params, subjects, combine, controls, edit)

    def _once(self, name: str, value: Any, check: Callable[[Any], Any]) -> tuple[str | None, Any]:
        """(what is wrong or None, check(value)), remembered by name and value."""
        key = name, json.dumps(value, sort_keys=True)
        if key not in self._known:
            try:
                self._known[key] = None, check(value)
            except CapHumanError as problem:
                self._known[key] = str(problem), None
            except (TypeError, ValueError, AttributeError, OverflowError) as problem:
                self._known[key] = f"{value!r} cannot be used ({problem})", None
        return self._known[key]

    def _params(self, fields: Mapping[str, Any], wrong: list[str]) -> SamplingParams | None:
        given = {name: value for name, value in fields.items() if name in FIELDS}
        shared = {name: given[name] for name in given if not FIELDS[name].per_image}
        own = {name: given[name] for name in given if FIELDS[name].per_image}
        key = json.dumps(shared, sort_keys=True) if shared else ""
        if key in self._bases:  # the common case; what is wrong is explained below
            try:
                return self._bases[key].with_own(own)
            except SettingError:
                pass
        problems = []
        for name, value in given.items():
            problem, _ = self._once(
                name, value, lambda value, name=name: self._create({name: value})
            )
            problems += [f"{name}: {problem}"] if problem else []
        if not problems:
            problem, params = self._once("", shared, self._create)
            if problem is None:
                self._bases[key] = params
                return params.with_own(own)
            problems.append(problem)
        wrong += problems
        return None

    def _create(self, given: Mapping[str, Any]) -> SamplingParams:
        return SamplingParams.create(self._config, **given)

    def _edit(self, fields, folder, wrong) -> EditRequest | None:
        edit = fields.get("edit")
        if edit is None:
            return None
        if not isinstance(edit, dict) or not isinstance(edit.get("photo"), str):
            wrong.append(
                'edit: must be an object such as {"photo": "me.jpg", "mask": "auto", "face": 0}'
            )
            return None
        edit = {**edit, "photo": self._photo(edit["photo"], folder, "edit.photo", wrong)}
        if edit.get("mask") not in (None, *MASKS):
            edit["mask"] = self._photo(edit["mask"], folder, "edit.mask", wrong)
        try:
            return create_edit(
                edit, fields.get("reference"), fields.get("people", ()), fields, self._config
            )
        except (CapHumanError, TypeError) as problem:
            wrong.append(f"edit: {problem}")
            return None

    def _subjects(self, fields, folder, wrong) -> list[SubjectRequest]:
        alone = {name: fields[name] for name in SUBJECT_FIELDS if name in fields}
        people, edit = fields.get("people"), fields.get("edit")
        if isinstance(edit, dict) and edit.get("person") is False:
            return []
        if people is None:
            return [self._subject(alone, folder, "", wrong, edit is not None)]
        if alone:
            wrong.append(
                f"{next(iter(alone))}: is for one person; with people, each of them has their own"
            )
            return []
        if not _objects(people) or not people:
            wrong.append(
                'people: must be a list of objects such as {"reference": "me.jpg", "head": {"yaw": '
                "20}}"
            )
            return []
        syntax = fields.get("prompt_syntax", True) is not False
        return [
            self._subject(one, folder, f"people[{i}].", wrong, syntax=syntax)
            for i, one in enumerate(people)
        ]

    def _subject(self, one, folder, prefix, wrong, edited=False, syntax=True) -> SubjectRequest:
        """Where something is wrong, without it."""
        for name in set(one) - set(PERSON_FIELDS):
            wrong.append(f"{prefix}{name}: there is no such field{nearest(name, PERSON_FIELDS)}")
        references = one.get("reference")
        references = references if isinstance(references, list) else [references]
        if edited and references == [None]:
            references = []  # the photo's own person
        elif not references or any(photo is None for photo in references):
            wrong.append(f"{prefix}reference: is missing; it is the photo of the person")
            references = []
        photos = [self._photo(photo, folder, f"{prefix}reference", wrong) for photo in references]
        target = self._head(one.get("head"), folder, f"{prefix}head", wrong)
        face = self._face(one.get("face"), f"{prefix}face", wrong)
        found = tuple(photo for photo in photos if photo is not None)
        region = {name: one[name] for name in REGION_FIELDS if one.get(name) is not None}
        if "mask" in region:
            region["mask"] = self._photo(region["mask"], folder, f"{prefix}mask", wrong)
        check = lambda value: check_region(value, syntax)
        problem, checked = self._once(f"region {syntax}", region, check)
        wrong += [f"{prefix}{problem}"] if problem else []
        return SubjectRequest(found, target or HeadTarget(), face, **(checked or {}))

    def _photo(self, photo, folder, name, wrong) -> str | None:
        if not isinstance(photo, str):
            wrong.append(f"{name}: must be the path of a photo, not {photo!r}")
            return None
        if not photo.strip():
            wrong.append(f"{name}: must not be empty; it is the path of a photo")
            return None
        key = ("photo", str(folder), photo)
        if key not in self._known:
            self._known[key] = self._find(photo, folder)
        problem, path = self._known[key]
        wrong += [f"{name}: {problem}"] if problem else []
        return None if problem else path

    def _face(self, face, name, wrong) -> int | None:
        if face is not None and (not isinstance(face, int) or isinstance(face, bool) or face < 0):
            wrong.append(f"{name}: must be the number of a face, 0 the largest, not {face!r}")
        return face

    def _head(self, head, folder, name, wrong) -> HeadTarget | None:
        key = ("head", str(folder), json.dumps(head or {}, sort_keys=True))
        if key not in self._known:
            problems: list[str] = []
            self._known[key] = problems, self._target(head or {}, folder, name, problems)
        problems, target = self._known[key]
        wrong += problems
        return target

    def _target(self, head, folder, name, wrong) -> HeadTarget | None:
        if isinstance(head, str):
            path = self._photo(head, folder, name, wrong)
            if wrong or path is None or not head.lower().endswith(".json"):
                return HeadTarget(photo=path)
            problem, head = self._once(f"file {path}", "", lambda _: head_json.read(path))
            if problem:
                wrong.append(f"{name}: {problem}")
                return None
        if not isinstance(head, dict):
            wrong.append(
                f'{name}: must be a photo or an object such as {{"yaw": 20, "expression": '
                f'"smile=0.8"}}, not {head!r}'
            )
            return None
        head = {
            field: value
            for field, value in head.items()
            if value is not None and field not in head_json.NOT_OF_TARGET
        }
        for field, value in head.items():
            if field == "photo":
                head["photo"] = self._photo(value, folder, f"{name}.photo", wrong)
            elif field == "photo_face":
                self._face(value, f"{name}.photo_face", wrong)
            else:
                check = lambda value, field=field: HeadTarget.of({field: value}).check(
                    self._head_model
                )
                problem, _ = self._once(f"head.{field}", value, check)
                wrong += [f"{name}.{field}: {problem}"] if problem else []
            if field in ("take", "framing", "photo_face") and "photo" not in head:
                wrong.append(f"{name}.{field}: says how a head photo is used; name it as photo")
        return None if wrong else HeadTarget.of(head)

    def _controls(self, controls, folder, wrong) -> tuple[ControlRequest, ...]:
        if not _objects(controls):
            wrong.append(
                'controls: must be a list of objects such as {"name": "openpose", "picture": '
                '"landmarks"}'
            )
            return ()
        found = [dict(one) for one in controls]
        for i, one in enumerate(found):
            if "picture" in one and one["picture"] != LANDMARKS:
                place = f"controls[{i}].picture"
                one["picture"] = self._photo(one["picture"], folder, place, wrong)
        check = lambda value: create_controls(value, self._config)
        problem, checked = self._once("controls", found, check)
        wrong += [f"controls: {problem}"] if problem else []
        return checked or ()


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


@functools.lru_cache(maxsize=1000)  # a product repeats its fields in every job
def nearest(name: str, known: tuple[str, ...]) -> str:
    """The end of a message about an unknown name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
