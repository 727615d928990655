"""Where photos come from: folders, tars, tables, the original CapHuman's layout, TFDS datasets.
`open_source` tells them apart.

Listing is lazy, cheap and in the order of the keys, which do not depend on the file system; nothing
is decoded. What is wrong with one item is told when that item is read, and never ends a run. Paths
may lie in a bucket (gs://, s3:// …) where fsspec can open it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from caphuman_jax.errors import DataError, SettingError

PHOTO_ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
CAPTION_NAMES, PERSON_NAMES = (
    ("caption", "captions", "text", "texts"),
    ("person", "person_id", "identity"),
)
IDENTITY_FILE = "identity_CelebA.txt"
_ERROR = "error"
_KNOWN = (
    "a folder; a .tar or a pattern of them, such as photos-{000..123}.tar; a .csv, .tsv or "
    ".parquet table with a column path; "
    "or tfds:NAME or tfds:NAME:SPLIT"
)


@dataclasses.dataclass(frozen=True)
class Item:
    """One photo that is not read yet. key: its name, unique and stable; person: "" where nobody
    says; place: where the source finds it.
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
    """Photos of one kind of place; can be pickled. Subclasses give `items` in the order of the
    keys, and `_read`.
    """

    def items(self) -> Iterator[Item]:
        """All items, sorted by key."""
        raise NotImplementedError

    def read(self, item: Item) -> bytes:
        """The photo's file. Raises DataError where it cannot be had."""
        if item.place and item.place[0] == _ERROR:
            raise DataError(f"{item.key}: {item.place[1]}")
        try:
            return self._read(item)
        except (OSError, ValueError) as error:
            raise DataError(f"{item.key}: cannot be read ({error})") from error

    def _read(self, item: Item) -> bytes:
        raise NotImplementedError


def open_source(
    text: str | os.PathLike, *, person: str | None = None, captions: str | os.PathLike | None = None
) -> Source:
    """The source that `text` names: %s.

    person: who is who, where the source does not say: "folder", the first folder below the root, or
    a file that says it ({key: person} as JSON, or lines of a key and a person as in CelebA's
    identity_CelebA.txt). captions: a file that says them, {key: text or texts} as JSON, or lines of
    a key and a caption. Keys there may leave out folders and endings. Raises DataError where there
    is no such place, nothing in it, or a file that cannot be read."""
    source = _source(os.fspath(text), person == "folder")
    persons = read_pairs(person) if person not in (None, "folder") else None
    described = (
        Described(source, persons, read_pairs(captions) if captions else None)
        if persons or captions
        else source
    )
    if next(described.items(), None) is None:
        raise DataError(
            f"there are no photos in {text}; photos end in {', '.join(sorted(PHOTO_ENDINGS))}"
        )
    return described


open_source.__doc__ %= _KNOWN


def _source(text: str, by_folder: bool) -> Source:
    from data_pipeline.sources import tables, tars, tfds

    ending = PurePosixPath(text).suffix.lower()
    if text.startswith("tfds:"):
        source: Source = tfds.TfdsSource(text)
    elif re.search(r"\.(tar\.\w+|tgz|tbz2?|txz|zip)$", text.lower()):
        raise DataError(
            f"{text} is compressed, and photos in it cannot be read in any order; unpack it, or "
            f"make it a plain .tar"
        )
    elif ending == ".tar":
        source = tars.TarSource(text)
    elif ending in (".csv", ".tsv", ".parquet"):
        source = tables.TableSource(text)
    elif not is_dir(text):
        raise DataError(f"{text} is no source of photos, or does not exist; give {_KNOWN}")
    elif exists(join(text, "imgid.txt")):
        source = OriginalSource(text)
    else:
        return FolderSource(text, by_folder)
    if by_folder:
        raise SettingError(
            f"{text} has no folders that could be people; `folder` is for folders of photos"
        )
    return source


@dataclasses.dataclass(frozen=True)
class FolderSource(Source):
    """A folder, searched through; keys are paths below it. Beside NAME.jpg may lie NAME.txt, a
    caption a line, and NAME.json with captions and a person. What begins with a dot is passed over.
    """

    root: str
    by_folder: bool = False

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        persons = _celeba_identities(self.root)
        for key, beside in self._walk("", frozenset()):
            item = _described_item(
                key,
                join(self.root, key),
                {
                    ending: functools.partial(read_bytes, join(self.root, path))
                    for ending, path in beside.items()
                },
            )
            person = (
                key.partition("/")[0]
                if self.by_folder and "/" in key
                else item.person or (_look_up(persons, key) if persons else "")
            )
            yield dataclasses.replace(item, person=person or "")

    def _walk(self, below: str, above: frozenset) -> Iterator[tuple[str, dict[str, str]]]:
        """Photos' keys, and the paths of the files beside each by their ending."""
        place = join(self.root, below) if below else self.root
        if "://" not in place:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in above:  # a link to a folder above
                return
            above = above | {(status.st_dev, status.st_ino)}
        names = dict(listing(place))
        # With their slash, folders sort among files as their contents' keys do.
        for name in sorted(name + "/" * folder for name, folder in names.items()):
            if name.endswith("/"):
                yield from self._walk(below + name, above)
            elif PurePosixPath(name).suffix.lower() in PHOTO_ENDINGS:
                stem = name.rpartition(".")[0]
                yield (
                    below + name,
                    {
                        ending: f"{below}{stem}.{ending}"
                        for ending in ("txt", "json")
                        if f"{stem}.{ending}" in names
                    },
                )

    def _read(self, item: Item) -> bytes:
        return read_bytes(*item.place)


@dataclasses.dataclass(frozen=True)
class OriginalSource(Source):
    """What the original CapHuman trains on: imgid.txt and Full_align_sup/ID.png, with
    captions.json, and identity_CelebA.txt where it is.

    Its reference crops (Face_align_sup) are of the same photos, and its hints, vectors and masks
    are its own networks': all of that is measured afresh."""

    root: str

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        names = {
            name.strip().removesuffix(".png")
            for name in read_text(join(self.root, "imgid.txt")).splitlines()
        } - {""}
        captions = (
            read_pairs(join(self.root, "captions.json"))
            if exists(join(self.root, "captions.json"))
            else {}
        )
        persons = _celeba_identities(self.root)
        for name in sorted(names):
            yield Item(
                name,
                str(_look_up(persons, name) or ""),
                _texts(_look_up(captions, name)),
                (join(self.root, "Full_align_sup", f"{name}.png"),),
            )

    def _read(self, item: Item) -> bytes:
        return read_bytes(*item.place)


@dataclasses.dataclass(frozen=True)
class Described(Source):
    """A source with persons or captions out of a file; those of the file go over the source's own."""

    source: Source
    persons: Mapping[str, Any] | None
    captions: Mapping[str, Any] | None

    def items(self) -> Iterator[Item]:
        """See `Source`."""
        for item in self.source.items():
            person, texts = (
                _look_up(self.persons, item.key),
                _texts(_look_up(self.captions, item.key)),
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
    """An item with what a JSON object, or a row, says of it under the names of CAPTION_NAMES and
    PERSON_NAMES.
    """
    lower = {str(name).lower(): value for name, value in fields.items()}
    first = lambda names: next(
        (lower[name] for name in names if lower.get(name) not in (None, "")), None
    )
    person = first(PERSON_NAMES)
    return Item(
        key, "" if person is None else str(person), texts + _texts(first(CAPTION_NAMES)), place
    )


def _described_item(key: str, path: str, beside: dict) -> Item:
    """An item with the text and the JSON object (both as functions that read them) that lie beside
    it.
    """
    try:
        texts = (
            tuple(line.strip() for line in beside["txt"]().decode().splitlines() if line.strip())
            if "txt" in beside
            else ()
        )
        fields = json.loads(beside["json"]()) if "json" in beside else {}
    except (OSError, ValueError) as error:
        return Item.broken(key, f"the text beside it cannot be read ({error})")
    return described(key, (path,), fields if isinstance(fields, dict) else {}, texts)


def read_pairs(path: str | os.PathLike) -> dict[str, Any]:
    """{key: value} of a JSON object, or of lines of a key, a blank, tab or comma, and a value.
    Raises DataError.
    """
    path, text = os.fspath(path), read_text(os.fspath(path))
    if path.endswith(".json"):
        try:
            pairs = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path} is no JSON: {error}") from error
        if not isinstance(pairs, dict):
            raise DataError(f"{path} is a {type(pairs).__name__}; an object {{key: …}} is wanted")
        return pairs
    lines = [
        re.split(r"[\s,]+", line.strip(), maxsplit=1) for line in text.splitlines() if line.strip()
    ]
    wrong = next((" ".join(line) for line in lines if len(line) != 2), None)
    if wrong is not None:
        raise DataError(f"{path} has a line {wrong!r}; each should be a key and what belongs to it")
    return {key: value.strip().strip('"') for key, value in lines}


def _celeba_identities(root: str) -> dict[str, Any]:
    """Of identity_CelebA.txt in a folder or in the one above it."""
    places = (join(root, IDENTITY_FILE), join(posixpath.dirname(root.rstrip("/")), IDENTITY_FILE))
    return next((read_pairs(place) for place in places if exists(place)), {})


def _look_up(pairs: Mapping[str, Any] | None, key: str) -> Any:
    """By the key, or without its folders or its ending; an ending may also be another's (CelebA's
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


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return tuple(str(text).strip() for text in values if str(text).strip())


def join(*parts: str) -> str:
    """Of paths and addresses alike."""
    return posixpath.join(*parts)


def listing(place: str) -> Iterator[tuple[str, bool]]:
    """Names in a folder, and whether each is a folder; in no order."""
    if "://" in place:
        for entry in _file_system(place).ls(place, detail=True):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if name and not name.startswith("."):
                yield name, entry["type"] == "directory"
        return
    with os.scandir(place) as entries:
        yield from (
            (entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")
        )


def is_dir(place: str) -> bool:
    """Is it a folder?"""
    return _file_system(place).isdir(place) if "://" in place else os.path.isdir(place)


def exists(place: str) -> bool:
    """Is there a file or folder of that name?"""
    return _file_system(place).exists(place) if "://" in place else os.path.exists(place)


def read_bytes(place: str, start: int = 0, count: int | None = None) -> bytes:
    """A file, or `count` bytes of it. Raises OSError."""
    with open_file(place) as stream:
        stream.seek(start)
        return stream.read() if count is None else stream.read(count)


def read_text(place: str) -> str:
    """Raises DataError."""
    try:
        return read_bytes(place).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read ({error})") from error


def open_file(place: str):
    """For reading bytes. Raises OSError."""
    return _file_system(place).open(place, "rb") if "://" in place else open(place, "rb")


def _file_system(place: str):
    try:
        import fsspec

        return fsspec.core.url_to_fs(place)[0]
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{place} cannot be opened here ({error}); install the package that fsspec names for it"
        ) from error
