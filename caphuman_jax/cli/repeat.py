"""`--repeat`: settings from a picture of ours."""

from __future__ import annotations

import logging
from typing import Any

from caphuman_jax.errors import SettingError

# A picture whose record lacks one of these was not made by this version's settings.
_RECORDED = (
    *("prompt", "combine", "seed", "sampler", "steps", "guidance_scale", "size"),
    *("index", "people", "controls"),
)
_FILE = {"name": str, "sha256": str}
_PHOTO = {**_FILE, "face": (int, type(None))}


def recorded(picture: str) -> dict[str, Any]:
    """The settings in a picture of ours, with all that is needed to make it again. Raises
    SettingError, PhotoError.
    """
    from caphuman_jax.io import metadata

    made = metadata.read_settings(picture)
    missing = [name for name in _RECORDED if name not in made] if isinstance(made, dict) else []
    if missing:
        raise SettingError(
            f"{picture} does not record all that is needed to repeat it (missing: "
            f"{', '.join(missing)}); it was made by another version"
        )
    if not _whole(made):
        raise SettingError(f"the settings in {picture} are damaged; take another of its pictures")
    return made


def _whole(made: Any) -> bool:
    """Whether everything that is looked up in a record is there, of the right type."""
    return (
        isinstance(made, dict)
        and all(isinstance(made[name], list) for name in ("people", "controls"))
        and all(map(_whole_person, made["people"]))
        and all(
            _has(control, {"name": str, "picture": (str, dict), "scale": (int, float)})
            and (isinstance(control["picture"], str) or _has(control["picture"], _FILE))
            for control in made["controls"]
        )
        and ("edit" not in made or _whole_edit(made["edit"]))
    )


def _whole_person(person: Any) -> bool:
    return (
        _has(person, {"reference": dict, "asked_head": dict})
        and _has(person["reference"], _PHOTO)
        and all(
            _has(person["asked_head"][name], _PHOTO)
            for name in ("photo",)
            if name in person["asked_head"]
        )
        and all(_has(person[name], _FILE) for name in ("mask",) if name in person)
    )


def _whole_edit(edit: Any) -> bool:
    return (
        _has(edit, {"photo": dict, "mask": (str, dict), "person": bool})
        and _has(edit["photo"], _PHOTO)
        and (isinstance(edit["mask"], str) or _has(edit["mask"], _FILE))
    )


def _has(entries: Any, kinds: dict[str, Any]) -> bool:
    return isinstance(entries, dict) and all(
        name in entries and isinstance(entries[name], kind) for name, kind in kinds.items()
    )


def repeated_head(picture: str, person: dict, photo: str | None, how: str) -> dict[str, Any]:
    """The head that was asked for of a person in a picture, with the head photo that is given again
    with the option `how`. Raises SettingError.
    """
    head = dict(person["asked_head"])
    if "photo" in head:
        if photo is None:
            raise SettingError(
                f"{picture} took its head from {head['photo']['name']}; name that photo with {how}"
            )
        head |= {"photo": photo, "photo_face": head["photo"]["face"]}
    return head


def compare(picture: str, now: dict[str, Any]) -> None:
    """A notice for everything that has changed since the picture was made."""
    from caphuman_jax.io import metadata

    before = metadata.read_settings(picture)
    references = lambda settings: [person["reference"]["sha256"] for person in settings["people"]]
    photos = lambda settings: [
        person["asked_head"].get("photo", {}).get("sha256") for person in settings["people"]
    ]
    masks = lambda settings: [person.get("mask", {}).get("sha256") for person in settings["people"]]
    first, second = (settings.get("edit", {}) for settings in (before, now))
    for what, old, new in (
        ("the reference photo", references(before), references(now)),
        ("the head photo", photos(before), photos(now)),
        ("the mask of a person", masks(before), masks(now)),
        *((f"the edited {k}", first.get(k), second.get(k)) for k in ("photo", "mask")),
        ("a ControlNet's picture", before["controls"], now["controls"]),
        ("the model", before.get("weights"), now.get("weights")),
        ("what measured the heads", before.get("head_by"), now.get("head_by")),
        *(
            (f"the {key}", before.get(key), now.get(key))
            for key in ("loras", "embeddings", "dtype", "memory", "version", "jax", "backend")
        ),
    ):
        if old != new:
            logging.getLogger("caphuman_jax").warning(
                "%s is not the one that %s was made with; the picture may differ", what, picture
            )
