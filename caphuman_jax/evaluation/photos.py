"""Which photos a model is evaluated on, and whether its training saw the people in them.

`caphuman prepare` decides who is held out: the records' split `test`. A model folder's metadata
names the rule that its training followed, as `held_out`:

    {"rule": "records", "sha256": …}   the split `test` of the records with that hash
    {"rule": "file name", "every": N}  photos whose file name has a CRC-32 that N divides
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.errors import DataError
from caphuman_jax.evaluation.metrics.memorization import nearest
from caphuman_jax.evaluation.outcome import Subject
from caphuman_jax.io.files import valid_text
from caphuman_jax.io.picture_formats import photos_in
from caphuman_jax.person import identity_file
from data_pipeline.prepare.splits import SAME_PERSON
from data_pipeline.records.manifest import records_hash
from data_pipeline.records.reader import RecordsFolder

TRAIN, TEST = "train", "test"
_AT_A_TIME = 1024  # records
_VECTORS = "recognition/mobilefacenet"


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo to evaluate on: a file, or what a record of `folder` keeps of one.

    Attributes:
        name: the file's name, or the record's key.
        path: the file; None for a record.
        folder: the records; None for a file.
        index: number of the record in the split `test`.
    """

    name: str
    path: Path | None = None
    folder: RecordsFolder | None = None
    index: int = 0

    def source(self) -> Path | bytes:
        """What `images.read_photo` takes. Raises DataError for a damaged record."""
        if self.folder is None:
            assert self.path is not None, "a photo is a file or a record"
            return self.path
        return self.folder.record(TEST, self.index, ("photo",))["photo"]


def in_folder(
    folder: Path,
    limit: int | None = None,
    every: int | None = None,
    identity_files: bool = True,
) -> list[Photo]:
    """Photos and identity files in a folder and its subfolders, sorted by path.

    Args:
        folder: where to search.
        limit: return at most this many.
        every: return only photos that the rule "file name" holds out; None: all photos.
        identity_files: return these too.

    Raises:
        DataError: there are none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a directory; give --photos a directory of photos")
    paths = list(photos_in(folder, deep=True))
    if identity_files:
        paths += folder.rglob(f"*{identity_file.ENDING}")
    paths.sort()
    if every is not None:
        paths = [p for p in paths if zlib.crc32(os.fsencode(p.name)) % every == 0]
    if not paths:
        raise DataError(f"no {'held-out ' if every is not None else ''}photos in {folder}")
    return [Photo(valid_text(p.name), p) for p in paths[:limit]]


def in_records(folder: RecordsFolder, limit: int | None = None) -> list[Photo]:
    """Photos of the records' split `test`, sorted by key; at most `limit` of them.

    Raises:
        DataError: nobody is held out, or a record is damaged.
    """
    if not folder.splits.get(TEST):
        raise DataError(
            f"{folder.path} holds nobody out: its split {TEST!r} is empty; prepare the photos "
            f"again with --hold-out, or give a directory of other photos to --photos"
        )
    keys = [folder.record(TEST, i, ("key",))["key"] for i in range(folder.count(TEST))]
    order = sorted(range(len(keys)), key=keys.__getitem__)[:limit]
    return [Photo(keys[i], None, folder, i) for i in order]


def file_name_rule(model: str, metadata: Mapping[str, Any]) -> int:
    """N of the rule "file name" that a model's metadata names, for `in_folder`.

    Raises:
        DataError: the metadata names another rule, or none.
    """
    rule = _rule(metadata)
    every = rule.get("every")
    if rule.get("rule") == "file name" and type(every) is int and every > 0:
        return every
    reason = (
        "the people held out from its training are in the split 'test' of its records"
        if rule.get("rule") == "records"
        else "its metadata does not say who was held out from its training"
    )
    raise DataError(
        f"--held-out cannot choose photos for {model}: {reason}; use --records DIR instead of "
        f"--photos, or leave out --held-out"
    )


def trained_on(metadata: Mapping[str, Any], folder: RecordsFolder) -> bool:
    """Whether a model's metadata says that it was trained on these records."""
    found = records_hash(folder.manifest)
    return bool(found) and _rule(metadata) == {"rule": "records", "sha256": found}


def check_training_records(folder: RecordsFolder) -> int:
    """Number of records that `training_vectors` would read. Raises DataError if there are none, or
    they lack the vectors.
    """
    folder.require([_VECTORS])
    return folder.count(TRAIN)


def training_vectors(folder: RecordsFolder) -> np.ndarray:
    """(M, 192) unit vectors of the shipped recognizer of the records' split `train`.

    Raises:
        DataError: there are none, or a record is damaged.
    """
    name = _VECTORS
    count, vectors = check_training_records(folder), []
    for start in range(0, count, _AT_A_TIME):
        messages = folder.read(TRAIN, range(start, min(start + _AT_A_TIME, count)))
        vectors += [folder.decode(message, (name,))[name] for message in messages]
    return np.stack(vectors)


def check_held_out(subjects: Sequence[Subject], training: np.ndarray, records: Path) -> None:
    """Check that training did not see the people who are judged.

    Args:
        subjects: the people.
        training: (M, 192) of `training_vectors`.
        records: where these come from.

    Raises:
        DataError: it saw some of them, as far as `prepare` could say: by the same limit.
    """
    vectors = np.stack([subject.vectors["mobilefacenet"] for subject in subjects])
    likest = nearest(vectors, training)
    seen = [s.name for s, cosine in zip(subjects, likest) if cosine > SAME_PERSON]
    if seen:
        some = ", ".join(seen[:5]) + (" …" if len(seen) > 5 else "")
        raise DataError(
            f"{len(seen)} of {len(subjects)} people are in the training data of {records} "
            f"({some}); leave their photos out, or add --training-people to judge them all the same"
        )


def _rule(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    rule = metadata.get("held_out")
    return rule if isinstance(rule, Mapping) else {}
