"""One file of records, even a damaged one, as `inspect` reads it. Training reads through
`reader.RecordsFolder`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from caphuman_jax.errors import DataError

# of a TFRecord: 8 bytes length, 4 bytes checksum of it; 4 more of the content follow the content
_HEADER = 12


def open_file(path: str | os.PathLike, file_format: str) -> ArrayRecordFile | TFRecordFile:
    """Open a file of records.

    Args:
        path: the file.
        file_format: "array_record" or "tfrecord".

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it cannot be read.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(path)
    return {"array_record": ArrayRecordFile, "tfrecord": TFRecordFile}[file_format](path)


class ArrayRecordFile:
    """An array_record file; `count`: its number of records."""

    def __init__(self, path):
        from data_pipeline.records.reader import array_record_reader

        self._reader = array_record_reader()(
            os.fspath(path), options="readahead_buffer_size:0,max_parallelism:0"
        )
        if not self._reader.ok():
            raise DataError(f"{path}: is damaged or cut off, no record of it can be read")
        self.count = self._reader.num_records()

    def read(self, start: int, stop: int) -> list[bytes | DataError]:
        """Messages start … stop − 1, with a DataError in place of a damaged one."""
        try:
            return self._reader.read(list(range(start, stop)))
        except RuntimeError as error:
            if stop - start == 1:
                return [DataError(f"is damaged: {error}")]
            return [message for i in range(start, stop) for message in self.read(i, i + 1)]


class TFRecordFile:
    """A TFRecord file; `count`: its number of records. Its own checksums are not checked, since the
    manifest has the file's SHA-256.
    """

    def __init__(self, path):
        self._path = path
        self._offsets = list(self._scan())
        self.count = len(self._offsets)

    def _scan(self) -> Iterator[tuple[int, int]]:
        """Offset and length of every record's content."""
        size, place = os.path.getsize(self._path), 0
        with open(self._path, "rb") as file:
            while place < size:
                file.seek(place)
                header = file.read(_HEADER)
                length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else size
                if place + _HEADER + length + 4 > size:
                    raise DataError(f"{self._path}: is damaged or cut off after byte {place}")
                yield place + _HEADER, length
                place += _HEADER + length + 4

    def read(self, start: int, stop: int) -> list[bytes | DataError]:
        """Messages start … stop − 1."""
        messages: list[bytes | DataError] = []
        with open(self._path, "rb") as file:
            for offset, length in self._offsets[start:stop]:
                file.seek(offset)
                messages.append(file.read(length))
        return messages
