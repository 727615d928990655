"""What a source of photos is: `Item`, `Source`, and the captions and persons that files next to the
photos give.

Listing is lazy and cheap, in the order of the keys, which do not depend on the file system; nothing
is decoded. A problem with one item is reported when that item is read, and never ends a run.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from caphuman_jax.errors import DataError
from caphuman_jax.io import json_reader
from caphuman_jax.io.files import valid_text
from caphuman_jax.io.picture_formats import PHOTO_ENDINGS, reason
from data_pipeline.sources.paths import exists, join, read_text

CAPTION_NAMES, PERSON_NAMES = (
    ("caption", "captions", "text", "texts"),
    ("person", "person_id", "identity"),
)
IDENTITY_FILE = "identity_CelebA.txt"
MAX_TEXT = 16 * 2**20
"""Bytes of the text next to one photo; longer ones are not read."""
_ERROR = "error"


@dataclasses.dataclass(frozen=True)
class Item:
    """One photo that has not been read yet.

    Attributes:
        key: its name, unique and stable.
        person: whom it shows, or "".
        captions: given ones.
        place: where the source finds it.
    """

    key: str
    person: str = ""
    captions: tuple[str, ...] = ()
    place: tuple = ()

    @classmethod
    def broken(cls, key: str, problem: str) -> Item:
        """An item whose reading raises DataError with this text."""
        return cls(key, place=(_ERROR, problem))


class Source:
    """Photos from one kind of place. Can be pickled. Subclasses define `items`, sorted by key, and
    `_read`.
    """

    def items(self) -> Iterator[Item]:
        """All items, sorted by key."""
        raise NotImplementedError

    def read(self, item: Item) -> bytes:
        """The photo's file. Raises DataError if it cannot be read."""
        if item.place and item.place[0] == _ERROR:
            raise DataError(f"{item.key}: {item.place[1]}")
        try:
            return self._read(item)
        except (OSError, ValueError) as error:
            raise DataError(f"{item.key}: cannot be read ({reason(error)})") from error

    def _read(self, item: Item) -> bytes:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Described(Source):
    """A source with persons or captions from a file, which replace the source's own."""

    source: Source
    persons: Mapping[str, Any] | None
    captions: Mapping[str, Any] | None

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        for item in self.source.items():
            person, texts = (
                look_up(self.persons, item.key),
                texts_of(look_up(self.captions, item.key)),
            )
            yield dataclasses.replace(
                item,
                person=item.person if person is None else str(person),
                captions=texts or item.captions,
            )

    def _read(self, item: Item) -> bytes:
        return self.source.read(item)


def described(
    key: str, place: tuple, fields: Mapping[str, Any], texts: tuple[str, ...] = ()
) -> Item:
    """An item with the captions and the person of a JSON object or a row, under CAPTION_NAMES and
    PERSON_NAMES.
    """
    lower = {str(name).lower(): value for name, value in fields.items()}
    first = lambda names: next(
        (lower[name] for name in names if lower.get(name) not in (None, "")), None
    )
    person = first(PERSON_NAMES)
    return Item(
        key,
        "" if person is None else valid_text(str(person)),
        texts + texts_of(first(CAPTION_NAMES)),
        place,
    )


def described_item(key: str, path: str, beside: dict) -> Item:
    """An item with the text and the JSON object next to it, given as functions that read them."""
    try:
        texts = (
            tuple(line.strip() for line in _text(beside["txt"]()).splitlines() if line.strip())
            if "txt" in beside
            else ()
        )
        fields = json_reader.parse(_text(beside["json"]())) if "json" in beside else {}
    except (OSError, ValueError) as error:
        return Item.broken(key, f"the text next to it cannot be read ({reason(error)})")
    return described(key, (path,), fields if isinstance(fields, dict) else {}, texts)


def _text(data: bytes) -> str:
    if len(data) > MAX_TEXT:
        raise ValueError(f"it has more than {MAX_TEXT >> 20} MB")
    return data.decode("utf-8-sig")


def read_pairs(path: str | os.PathLike) -> dict[str, Any]:
    """{key: value} of a JSON object, or of lines with a key, a blank, tab or comma, and a value.
    Raises DataError.
    """
    path, text = os.fspath(path), read_text(os.fspath(path))
    if path.endswith(".json"):
        try:
            pairs = json_reader.parse(text)
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from error
        if not isinstance(pairs, dict):
            raise DataError(f"{path} is a {type(pairs).__name__}; an object {{key: …}} is expected")
        return pairs
    lines = [
        re.split(r"[\s,]+", line.strip(), maxsplit=1) for line in text.splitlines() if line.strip()
    ]
    wrong = next((" ".join(line) for line in lines if len(line) != 2), None)
    if wrong is not None:
        raise DataError(f"{path} has a line {wrong!r}; each should be a key and what belongs to it")
    return {key: value.strip().strip('"') for key, value in lines}


def celeba_identities(root: str) -> dict[str, Any]:
    """Of identity_CelebA.txt in a folder or in the one above it."""
    places = (join(root, IDENTITY_FILE), join(posixpath.dirname(root.rstrip("/")), IDENTITY_FILE))
    return next((read_pairs(place) for place in places if exists(place)), {})


def look_up(pairs: Mapping[str, Any] | None, key: str) -> Any:
    """The value of a key, also without its folders or its ending, or with another ending (CelebA's
    ID.jpg for ID.png).
    """
    if not pairs:
        return None
    path = PurePosixPath(key)
    stem = str(path.with_suffix("")) if path.suffix.lower() in PHOTO_ENDINGS else key
    for name in (
        key,
        path.name,
        stem,
        PurePosixPath(stem).name,
        *(PurePosixPath(stem).name + ending for ending in (".jpg", ".png")),
    ):
        if name in pairs:
            return pairs[name]
    return None


def texts_of(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return tuple(valid_text(str(text).strip()) for text in values if str(text).strip())
