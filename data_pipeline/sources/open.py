"""`open_source`: which kind of source a text names."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

from caphuman_jax.errors import DataError, SettingError
from data_pipeline.sources.base import Described, Source, read_pairs
from data_pipeline.sources.folder import FolderSource
from data_pipeline.sources.original import OriginalSource
from data_pipeline.sources.paths import exists, is_dir, join
from data_pipeline.sources.tables import TableSource
from data_pipeline.sources.tars import TarSource
from data_pipeline.sources.tfds import TfdsSource

_KNOWN = (
    "a folder; a .tar or a pattern of them, such as photos-{000..123}.tar; a .csv, .tsv or "
    ".parquet table with a column path; "
    "or tfds:NAME or tfds:NAME:SPLIT"
)


def open_source(
    text: str | os.PathLike, *, person: str | None = None, captions: str | os.PathLike | None = None
) -> Source:
    """The source that `text` names: %s.

    Keys in the files below may leave out folders and endings.

    Args:
        text: names the source.
        person: whom the photos show, where the source does not say: "folder" (the first folder
            below the root), or a file: {key: person} as JSON, or lines of a key and a person as in
            CelebA's identity_CelebA.txt.
        captions: a file: {key: text or texts} as JSON, or lines of a key and a caption.

    Raises:
        DataError: there is no such place, it is empty, or a file cannot be read.
    """
    source = _source(os.fspath(text), person == "folder")
    persons = read_pairs(person) if person not in (None, "folder") else None
    described = (
        Described(source, persons, read_pairs(captions) if captions else None)
        if persons or captions
        else source
    )
    if next(described.items(), None) is None:
        raise DataError(f"there are no photos in {text}")
    return described


if open_source.__doc__:  # not with -OO
    open_source.__doc__ %= _KNOWN


def _source(text: str, by_folder: bool) -> Source:
    ending = PurePosixPath(text).suffix.lower()
    if text.startswith("tfds:"):
        source: Source = TfdsSource(text)
    elif re.search(r"\.(tar\.\w+|tgz|tbz2?|txz|zip)$", text.lower()):
        raise DataError(
            f"{text} is compressed, so its photos cannot be read in any order; unpack it, or make "
            f"it a plain .tar"
        )
    elif ending == ".tar":
        source = TarSource(text)
    elif ending in (".csv", ".tsv", ".parquet"):
        source = TableSource(text)
    elif not is_dir(text):
        raise DataError(f"{text} does not exist or is not a source of photos; give {_KNOWN}")
    elif exists(join(text, "imgid.txt")):
        source = OriginalSource(text)
    else:
        return FolderSource(text, by_folder)
    if by_folder:
        raise SettingError(
            f"{text} has no folders that could be people; `folder` is for folders of photos"
        )
    return source
