"""Whether a job's fields can be done by a model, said field by field; nothing is measured and no
weights are needed.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import CapHumanError
from caphuman_jax.head import editing
from caphuman_jax.head.head import Head
from caphuman_jax.person.person import WantedHead
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.request import LANDMARKS, OWN_SETTINGS

_STRUCTURE = ("reference", "head", "face", "people", "controls")
_GATES = {"hard": True, "soft": False}


class Checker:
    """checker(fields, folder) → (what is wrong, arguments of `Pipeline.request`); photos are looked
    for in `folder`.

    Every distinct value is checked once, and equal ones share one object.
    """

    def __init__(self, config: ModelConfig):
        self._pipe = Pipeline(config, {}, ())
        self.settings = [
            name
            for name in inspect.signature(Pipeline.request).parameters
            if name not in ("self", *_STRUCTURE)
        ]
        self.fields = [*_STRUCTURE, *self.settings, "gate"]
        nothing = np.zeros(1, np.float32)
        self._neutral = Head(
            nothing,
            nothing,
            np.eye(3, dtype=np.float32),
            np.float32(1),
            np.zeros(2, np.float32),
            np.full(2, 256, np.float32),
            np.zeros((9, 3), np.float32),
            np.zeros((1, 3), np.float32),
            np.float32(0),
        )
        self._known: dict = {}

    def __call__(self, fields: Mapping, folder: Path) -> tuple[list[str], dict]:
        wrong, options = [], {}
        for name in fields:
            if name not in self.fields:
                wrong.append(f"{name}: there is no such field{_nearest(name, self.fields)}")
        if "prompt" not in fields:
            wrong.append("prompt: is missing; what is the picture to show?")
        fields = dict(fields)
        if "gate" in fields:
            gate = fields.pop("gate")
            if not isinstance(gate, str) or gate not in _GATES:
                wrong.append(f"gate: must be hard or soft, not {gate!r}")
            elif "hard_gate" in fields:
                wrong.append("gate: hard_gate says it already")
            else:
                fields["hard_gate"] = _GATES[gate]
        for name in self.settings:
            if name in fields and fields[name] is not None:
                problem, options[name] = self._once(name, fields[name], self._setting)
                wrong += [f"{name}: {problem}"] if problem else []
        shared = {
            name: value
            for name, value in options.items()
            if name not in (*OWN_SETTINGS, "num", "first")
        }
        if not wrong and len(shared) > 1:
            problem, _ = self._once("", shared, self._together)
            wrong += [problem] if problem else []
        options["people"] = tuple(self._people(fields, folder, wrong))
        options["controls"] = tuple(self._controls(fields.get("controls") or [], folder, wrong))
        return wrong, options

    def _once(self, name, value, check):
        key = (name, check.__name__, json.dumps(value, sort_keys=True))
        if key not in self._known:
            try:
                self._known[key] = None, check(name, value)
            except CapHumanError as problem:
                self._known[key] = str(problem), None
            except (TypeError, ValueError, AttributeError) as problem:
                self._known[key] = f"{value!r} cannot be used ({problem})", None
        return self._known[key]

    def _setting(self, name, value):
        if isinstance(value, bool) != (name == "hard_gate"):
            raise CapHumanError(
                f"{value!r} cannot be used"
                if isinstance(value, bool)
                else f"must be true or false, not {value!r}"
            )
        value = tuple(value) if isinstance(value, list) else value
        request = self._pipe.request(**{"prompt": "", "reference": "x", name: value})
        return getattr(request, name) if name in ("num", "first") else value

    def _together(self, _, shared):
        self._pipe.request(prompt="", reference="x", **shared)

    def _people(self, fields, folder, wrong):
        alone = {
            name: fields[name]
            for name in ("reference", "head", "face")
            if fields.get(name) is not None
        }
        people = fields.get("people")
        if people is not None and alone:
            wrong.append(
                f"{next(iter(alone))}: is for one person; with people, each of them has their own"
            )
            return []
        if people is None:
            return [self._person(alone, folder, "", wrong)]
        if (
            not isinstance(people, list)
            or not people
            or not all(isinstance(one, dict) for one in people)
        ):
            wrong.append(
                'people: must be a list of objects such as {"reference": "me.jpg", "head": {"yaw": '
                "20}}"
            )
            return []
        return [self._person(one, folder, f"people[{i}].", wrong) for i, one in enumerate(people)]

    def _person(self, one, folder, prefix, wrong):
        for name in set(one) - {"reference", "head", "face"}:
            wrong.append(
                f"{prefix}{name}: there is no such "
                f"field{_nearest(name, ('reference', 'head', 'face'))}"
            )
        references = one.get("reference")
        references = references if isinstance(references, list) else [references]
        if not references or any(photo is None for photo in references):
            wrong.append(f"{prefix}reference: is missing; whose picture is it to be?")
            references = []
        photos = [self._photo(photo, folder, f"{prefix}reference", wrong) for photo in references]
        return {
            "reference": tuple(photos),
            "head": self._head(one.get("head"), folder, f"{prefix}head", wrong),
            "face": self._number_of_face(one.get("face"), f"{prefix}face", wrong),
        }

    def _photo(self, photo, folder, name, wrong):
        if not isinstance(photo, str):
            wrong.append(f"{name}: must be the path of a photo, not {photo!r}")
            return None
        key = ("photo", str(folder), photo)
        if key not in self._known:
            path = folder / photo
            self._known[key] = (
                (None if path.is_file() else f"{path} does not exist; check the path"),
                str(path.absolute()),
            )
        problem, path = self._known[key]
        wrong += [f"{name}: {problem}"] if problem else []
        return path

    def _number_of_face(self, face, name, wrong):
        if face is not None and (not isinstance(face, int) or isinstance(face, bool) or face < 0):
            wrong.append(f"{name}: must be the number of a face, 0 the largest, not {face!r}")
        return face

    def _head(self, head, folder, name, wrong):
        """A WantedHead; None for the reference's own."""
        if head is None or head == {}:
            return None
        key = ("head", str(folder), json.dumps(head, sort_keys=True))
        if key not in self._known:
            problems: list[str] = []
            self._known[key] = problems, self._wanted(head, folder, name, problems)
        problems, wanted = self._known[key]
        wrong += problems
        return wanted

    def _wanted(self, head, folder, name, wrong):
        if isinstance(head, str):
            return WantedHead(photo=self._photo(head, folder, name, wrong))
        if not isinstance(head, dict):
            wrong.append(
                f'{name}: must be a photo or an object such as {{"yaw": 20, "expression": '
                f'"smile=0.8"}}, not {head!r}'
            )
            return None
        head = {field: value for field, value in head.items() if value is not None}
        for field, value in head.items():
            if field == "photo":
                head["photo"] = self._photo(value, folder, f"{name}.photo", wrong)
            elif field == "photo_face":
                self._number_of_face(value, f"{name}.photo_face", wrong)
            else:
                problem, _ = self._once(field, value, self._head_number)
                wrong += [f"{name}.{field}: {problem}"] if problem else []
            if field in ("take", "framing", "photo_face") and "photo" not in head:
                wrong.append(f"{name}.{field}: says how a head photo is used; name it as photo")
        return None if wrong else WantedHead.of(head)

    def _head_number(self, name, value):
        wanted = WantedHead.of({name: value})
        wanted.check(self._pipe.head_model)
        numbers = wanted.numbers
        if isinstance(numbers.get("expression"), (str, dict)):
            numbers.pop("expression")  # checked; the neutral head here has none
        editing.from_numbers(self._pipe.head_model, self._neutral, **numbers)

    def _controls(self, controls, folder, wrong):
        if not isinstance(controls, list) or not all(isinstance(one, dict) for one in controls):
            wrong.append(
                'controls: must be a list of objects such as {"name": "openpose", "picture": '
                '"landmarks"}'
            )
            return []
        found = [dict(one) for one in controls]
        for i, one in enumerate(found):
            if "picture" in one and one["picture"] != LANDMARKS:
                one["picture"] = self._photo(
                    one["picture"], folder, f"controls[{i}].picture", wrong
                )
        if found:
            problem, _ = self._once(
                "controls",
                found,
                lambda name, value: self._pipe.request(prompt="", reference="x", controls=value),
            )
            wrong += [f"controls: {problem}"] if problem else []
        return found


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
