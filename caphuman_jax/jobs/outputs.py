"""Where pictures go: a PNG or JPEG file each, or array_record files of a unit's pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from caphuman_jax.errors import DataError, PhotoError
from caphuman_jax.io import atomic, files, images, metadata, picture_formats
from caphuman_jax.io.images import encode_png
from caphuman_jax.io.picture import encode_jpeg
from caphuman_jax.jobs.order import Picture
from data_pipeline.records import shard_file, tf_example
from data_pipeline.records.schema import Feature

RECORD = (
    Feature("id", "text"),
    Feature("number", "array", (), "int64"),
    Feature("picture", "image", encoding="png"),
    Feature("settings", "text"),
)
"""A record of an array_record file, a tf.Example: the job's id, the picture's number, the PNG file,
and how it was made (JSON).
"""


class Files:
    """A file for each picture, FOLDER/ID_NN.png or .jpg."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind = folder, kind
        self.encode = encode_png_picture if kind == "png" else encode_jpeg

    def there(self, picture: Picture) -> dict | None:
        """What `store` returns for a picture that exists; None if it is missing or damaged."""
        path = self.folder / self._name(picture)
        try:
            data = files.read_regular(path, picture_formats.MAX_BYTES)
            with picture_formats.open_picture(data, path.name) as opened:
                opened.load()
        except (*images.DAMAGE, PhotoError):
            return None
        return self._line(picture, data)

    def store(
        self, picture: Picture, pixels: np.ndarray, settings: dict
    ) -> tuple[dict, bytes | None]:
        """Write a picture. Returns its entries in the index, and what `finish` needs."""
        data = self.encode(pixels, settings)
        # Not into a new folder: one that was removed meanwhile would hold pictures of no run.
        atomic.write_bytes(self.folder / self._name(picture), data)
        return self._line(picture, data), None

    def sound(self, line: dict, deep: bool) -> bool:
        """Whether the file of a picture is there and, with `deep`, has its checksum. A file with
        another one is removed, so that it is not taken for the picture.
        """
        path = self.folder / line["file"]
        if not deep:
            return _has_content(path)
        try:
            data = files.read_regular(path, picture_formats.MAX_BYTES)
        except OSError:
            return False
        if hashlib.sha256(data).hexdigest() == line["sha256"]:
            return True
        path.unlink(missing_ok=True)
        return False

    def finish(
        self, unit: int, units: int, lines: Sequence[dict], payloads: Sequence
    ) -> list[dict]:
        """Called when all pictures of a unit are stored."""
        return list(lines)

    def _name(self, picture):
        return f"{picture.job.id}_{picture.number:02d}.{'png' if self.kind == 'png' else 'jpg'}"

    def _line(self, picture, data):
        return {"file": self._name(picture), "sha256": hashlib.sha256(data).hexdigest()}


class Shards:
    """FOLDER/pictures-NNNNN-of-NNNNN.array_record, a file for each unit, whose pictures are kept in
    memory until it is complete.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._last: tuple[Path, shard_file.ArrayRecordFile | shard_file.TFRecordFile] | None = None

    def sound(self, line: dict, deep: bool) -> bool:
        """Whether the file of a picture is there and, with `deep`, the picture in it has its
        checksum.
        """
        path = self.folder / line["file"]
        if not deep:
            return _has_content(path)
        try:
            (message,) = self._opened(path).read(line["record"], line["record"] + 1)
            if isinstance(message, DataError):
                return False
            data = tf_example.decode(RECORD, message, ("picture",))["picture"]
        except (OSError, RuntimeError, DataError):
            return False
        return hashlib.sha256(data).hexdigest() == line["sha256"]

    def _opened(self, path: Path) -> shard_file.ArrayRecordFile | shard_file.TFRecordFile:
        """A file, which stays open while its records are asked for."""
        if self._last is None or self._last[0] != path:
            self._last = path, shard_file.open_file(path, "array_record")
        return self._last[1]

    def there(self, picture: Picture) -> None:
        """None: a file of pictures is complete or is made again."""

    def store(self, picture: Picture, pixels: np.ndarray, settings: dict) -> tuple[dict, bytes]:
        """See `Files.store`."""
        data = encode_png_picture(pixels, settings)
        record = {
            "id": picture.job.id,
            "number": np.int64(picture.number),
            "picture": data,
            "settings": json.dumps(settings, ensure_ascii=False),
        }
        return {"sha256": hashlib.sha256(data).hexdigest()}, tf_example.encode(RECORD, record)

    def finish(
        self, unit: int, units: int, lines: Sequence[dict], payloads: Sequence[bytes]
    ) -> list[dict]:
        """Write the unit's file."""
        from array_record.python.array_record_module import ArrayRecordWriter

        name = f"pictures-{unit:05d}-of-{units:05d}.array_record"
        if payloads:
            with atomic.file(self.folder / name) as beside:
                writer = ArrayRecordWriter(str(beside), "group_size:1")
                for message in payloads:
                    writer.write(message)
                writer.close()
        return [line | {"file": name, "record": i} for i, line in enumerate(lines)]


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def output(folder: Path, kind: str) -> Files | Shards:
    """The output in a `--format` of `caphuman sample`: "png", "jpeg" or "array_record"."""
    return Shards(folder) if kind == "array_record" else Files(folder, kind)


def encode_png_picture(pixels: np.ndarray, settings: dict) -> bytes:
    """The PNG file that `caphuman generate` writes of a picture."""
    return encode_png(pixels, metadata.metadata(settings))
