"""The records of a dataset as columns in memory, for training the small model."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from pathlib import Path

import jax
import numpy as np

from caphuman_jax.errors import DataError
from caphuman_jax.head.head import Head
from caphuman_jax.io import json_reader
from data_pipeline.records import schema
from data_pipeline.records.reader import RecordsFolder, array_record_reader
from data_pipeline.records.schema import MASK_SIZE, PARTNERS

HEAD_FIELDS = tuple(
    field.name for field in dataclasses.fields(Head) if field.name != "size"
)  # which is the stored square's
_COLUMNS = {
    "covered": "covered",
    "landmarks": "landmarks",
    "expression": "expression",
    "face_px": "face_px",
    "colors": "colours",
    "mobilefacenet": "recognition/mobilefacenet",
}


@dataclasses.dataclass(frozen=True)
class Records:
    """Columns over N photos, those of the split train first. Lengths are fractions of the stored
    square's side S. Columns that are not described here are as in `schema.features`.

    Attributes:
        name: keys.
        test: (N,) bool, who is held out.
        pictures: (N, S, S, 3) uint8.
        person: (N, 256, 256) uint8.
        attributes: dicts, see `captions.attributes`.
        heads: `Head` with a leading axis, in pixels of the square.
        partners: (N, 3), numbers of other photos of the person among these, or -1.
        trained: {name: (N, …)} of `schema.TRAINED`.
    """

    name: np.ndarray
    test: np.ndarray
    pictures: np.ndarray
    person: np.ndarray
    covered: np.ndarray
    landmarks: np.ndarray
    expression: np.ndarray
    face_px: np.ndarray
    colors: np.ndarray
    mobilefacenet: np.ndarray
    attributes: np.ndarray
    heads: Head
    partners: np.ndarray
    trained: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.name)

    def take(self, index: np.ndarray) -> Records:
        """The records of an index or mask. Partners that are not among them are removed."""
        index = np.arange(len(self))[index]
        place = np.full(len(self) + 1, -1, np.int64)  # the last one for -1
        place[index] = np.arange(len(index))
        columns = {
            f.name: jax.tree.map(lambda column: column[index], getattr(self, f.name))
            for f in dataclasses.fields(self)
        }
        return Records(**columns | {"partners": place[columns["partners"]]})


def load_records(folder: str | os.PathLike, size: int | None = None) -> Records:
    """Read all records into memory (about 0.5 MB a photo at 256²).

    Args:
        folder: of the records.
        size: side in pixels of the images to train on; None: any.

    Raises:
        DataError: the folder is missing, damaged or made for another size.
    """
    if (Path(folder) / "records.npz").is_file():
        raise DataError(
            f"{folder} was written by caphuman precompute, which no longer exists; make the "
            f"records with caphuman prepare --photos PHOTOS --out DIR"
        )
    source = RecordsFolder(folder)
    array_record_reader()  # says what to install
    if size not in (None, source.size):
        raise DataError(
            f"{folder} holds records for {source.size}² pictures, the model is trained on {size}²; "
            f"make them with caphuman prepare --size {size}"
        )
    splits = [split for split in ("train", "test") if source.splits.get(split)]
    if splits[:1] != ["train"]:
        raise DataError(
            f"{source.path} has no records to train on; prepare more photos, or hold fewer out"
        )
    only = {
        "key",
        "photo",
        "person_mask",
        "attributes",
        "partners",
        *_COLUMNS.values(),
        *(f"head/{name}" for name in HEAD_FIELDS),
        *(feature.name for feature in schema.TRAINED),
    }
    places = [(split, index) for split in splits for index in range(source.splits[split])]
    source.require(only)
    wanted = {feature.name: feature.shape for feature in source.features}
    stored, count = wanted["photo"][0], len(places)
    columns = {
        ours: np.empty((count, *wanted[theirs]), np.float32) for ours, theirs in _COLUMNS.items()
    }
    heads = {name: np.empty((count, *wanted[f"head/{name}"]), np.float32) for name in HEAD_FIELDS}
    trained = {f.name: np.empty((count, *f.shape), f.dtype) for f in schema.TRAINED}
    pictures, person = (
        np.empty((count, stored, stored, 3), np.uint8),
        np.empty((count, MASK_SIZE, MASK_SIZE), np.uint8),
    )
    names, attributes, partners = (
        [""] * count,
        np.empty(count, object),
        np.empty((count, PARTNERS), np.int64),
    )
    first = {
        split: next(i for i, (other, _) in enumerate(places) if other == split) for split in splits
    }

    def decode(i: int) -> None:
        split, index = places[i]
        with source.naming(split, index):
            record = source.record(split, index, only)
            names[i], attributes[i] = record["key"], _attributes(record["attributes"])
            pictures[i], person[i] = (
                source.pixels("photo", record["photo"]),
                source.pixels("person_mask", record["person_mask"])[..., 0],
            )
            partners[i] = np.where(record["partners"] >= 0, record["partners"] + first[split], -1)
        for column, name in _COLUMNS.items():
            columns[column][i] = record[name]
        for name, column in heads.items():
            column[i] = record[f"head/{name}"]
        for name, column in trained.items():
            column[i] = record[name]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, range(count)))
    heads["albedo"] /= 255
    return Records(
        name=np.array(names),
        test=np.array([split == "test" for split, _ in places]),
        pictures=pictures,
        person=person,
        attributes=attributes,
        heads=Head(size=np.full((count, 2), stored, np.float32), **heads),
        partners=partners,
        trained=trained,
        **columns,
    )


def _attributes(text: str) -> dict:
    try:
        return json_reader.parse(text)
    except ValueError as error:
        raise DataError(f"attributes is not JSON: {error}") from error


def training_split(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to evaluate on, as `prepare` split them."""
    return np.flatnonzero(~records.test), np.flatnonzero(records.test)
