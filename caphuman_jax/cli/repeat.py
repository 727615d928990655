"""`--repeat`: settings from a picture of ours."""

from __future__ import annotations

import logging
from typing import Any

from caphuman_jax.errors import SettingError

# A picture whose record lacks one of these was not made by this version's settings.
_RECORDED = ("prompt", "combine", "seed", "sampler", "steps", "guidance_scale", "size")


def recorded(picture: str) -> dict[str, Any]:
    """The settings in a picture of ours, with all that is needed to make it again. Raises
    SettingError, PhotoError.
    """
    from caphuman_jax.io import metadata

    made = metadata.read_settings(picture)
    missing = [name for name in _RECORDED if name not in made]
    if missing:
        raise SettingError(
            f"{picture} does not record all that is needed to repeat it (missing: "
            f"{', '.join(missing)}); it was made by another version"
        )
    return made


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
