"""Reading what `data_pipeline.precompute` wrote, and the split into people to train on and people to measure on."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import zlib
from pathlib import Path

import cv2
import numpy as np

from caphuman_jax.errors import DataError
from data_pipeline.precompute import STORED

HELD_OUT_PARTS = 16  # one file name in so many, by hash, is held out
SAME_PERSON = 0.72  # cosine of recognition vectors above which two photos show one person; strangers with old engravings or like beards reach 0.7


@dataclasses.dataclass(frozen=True)
class Records:
    """Columns over N photos; lengths in parts of the stored square's side, pictures (N, STORED, STORED, 3) uint8."""

    name: np.ndarray
    pictures: np.ndarray
    covered: np.ndarray
    landmarks: np.ndarray
    expression: np.ndarray
    face_px: np.ndarray
    person: np.ndarray
    colours: np.ndarray
    mobilefacenet: np.ndarray
    dlib: np.ndarray

    def __len__(self) -> int:
        return len(self.name)

    def take(self, index: np.ndarray) -> Records:
        """The records of an index or mask."""
        return Records(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})


def load_records(folder: str | os.PathLike) -> Records:
    """Everything in memory (about 0.4 MB a photo). Raises DataError for a missing or damaged folder."""
    folder = Path(folder)
    try:
        with np.load(folder / "records.npz") as file:
            columns = {k: file[k] for k in file.files}
        packed = (folder / "pictures.bin").read_bytes()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: no readable records ({error}); make them with python -m data_pipeline.precompute") from error
    offset = columns["offset"]
    if offset[-1] != len(packed):
        raise DataError(f"{folder}/pictures.bin has {len(packed)} bytes, records.npz says {offset[-1]}; make the records again")
    pictures = np.empty((len(offset) - 1, STORED, STORED, 3), np.uint8)

    def decode(i: int) -> None:
        bgr = cv2.imdecode(np.frombuffer(packed, np.uint8, offset[i + 1] - offset[i], offset[i]), cv2.IMREAD_COLOR)
        if bgr is None:
            raise DataError(f"{folder}/pictures.bin: picture {i} ({columns['name'][i]}) is damaged; make the records again")
        pictures[i] = cv2.resize(bgr[..., ::-1], (STORED, STORED), interpolation=cv2.INTER_CUBIC)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, range(len(pictures))))
    fields = {f.name for f in dataclasses.fields(Records)} - {"pictures"}
    return Records(pictures=pictures, **{k: columns[k] for k in fields})


def held_out(names: np.ndarray, parts: int = HELD_OUT_PARTS) -> np.ndarray:
    """Mask of the photos to measure on: a hash of the file's name decides, so it never changes as photos are added."""
    return np.array([zlib.crc32(str(n).encode()) % parts == 0 for n in names])


def training_split(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to measure on. Who is held out is held out with every photo that shows the same person."""
    test = held_out(records.name)
    unit = records.mobilefacenet / np.linalg.norm(records.mobilefacenet, axis=1, keepdims=True)
    same = (unit @ unit[test].T).max(axis=1, initial=-1.0) > SAME_PERSON  # nobody may be held out of a handful
    return np.flatnonzero(~test & ~same), np.flatnonzero(test)
