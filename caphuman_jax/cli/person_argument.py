"""--person of `caphuman generate`: one of several people, in one argument."""

from __future__ import annotations

from typing import Any

from caphuman_jax.cli import head_arguments
from caphuman_jax.errors import SettingError

_HEAD_NUMBERS = {"yaw": float, "pitch": float, "roll": float, "framing": str}
_PERSON_KEYS = (
    "ref, face, head, head-face, take, framing, numbers, yaw, pitch, roll, expression, light, "
    "position, prompt, box and mask"
)


def parse(text: str) -> dict[str, Any]:
    """ "ref=me.jpg,yaw=15,expression=smile:0.8+jawOpen:0.3" → one of the request's people.

    Raises:
        SettingError: an entry that people do not have, or no photo.
    """
    references, face, head, numbers, region, key = [], None, {}, None, {}, ""
    for entry in text.split(","):
        if key == "prompt" and "=" not in entry:
            region["prompt"] += f",{entry}"  # a prompt's own comma
            continue
        key, equals, value = entry.partition("=")
        key = key.strip()
        if not equals or not value:
            raise SettingError(f"--person takes entries such as ref=me.jpg,yaw=15, not {entry!r}")
        if key == "ref":
            references.append(value)
        elif key == "face":
            face = _typed(int, value, key)
        elif key == "head-face":
            head["photo_face"] = _typed(int, value, key)
        elif key in _HEAD_NUMBERS:
            head[key] = _typed(_HEAD_NUMBERS[key], value, key)
        elif key == "head":
            head["photo"] = value
        elif key == "numbers":
            numbers = value
        elif key == "take":
            head["take"] = value.replace("+", ",")
        elif key == "expression":
            head["expression"] = value.replace(":", "=").replace("+", ",")
        elif key == "light":
            head["light"] = value.replace(":", "=").replace("/", ",")
        elif key == "position":
            head["position"] = head_arguments.floats(value, "position of --person", "/")
        elif key == "box":
            region["box"] = head_arguments.floats(value, "box of --person", "/")
        elif key in ("prompt", "mask"):
            region[key] = value
        else:
            raise SettingError(f"--person has no entry {key!r}; it has {_PERSON_KEYS}")
    if not references:
        raise SettingError(f"--person {text} names no photo: begin with ref=PHOTO")
    return {
        "reference": references,
        "face": face,
        "head": head_arguments.with_numbers(head, numbers),
        **region,
    }


def _typed(kind, value, key):
    try:
        return kind(value)
    except ValueError:
        raise SettingError(f"{key} of --person takes a number, not {value!r}") from None
