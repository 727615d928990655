"""Records by number, in any order: reads the array_record files of `caphuman prepare` without
TensorFlow.
"""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from caphuman_jax.errors import DataError
from caphuman_jax.io import buckets, json_reader
from data_pipeline.records import staging, tf_example
from data_pipeline.records.manifest import MANIFEST, records_hash
from data_pipeline.records.schema import NAME, VERSION, Feature

# records of a split above which the files' own indices (38 bytes a record in memory) stay on disk
_OFFLOAD = 1_000_000
_SPARE_FILES = 256  # for whatever else the process has open


class RecordsFolder:
    """The records in a folder: `--out` of `caphuman prepare`, or the version's folder inside it.
    Those of a bucket (gs://, s3://) are copied to this machine first.

    Safe to use from many threads. Can be pickled.

    Attributes:
        path: the version's folder.
        manifest: its manifest.json.
        features: of the records.
        size: side in pixels of the images to train on.
        splits: {split: number of records}.
        files: {split: [(path, number of records), …]}.

    Raises:
        DataError: the folder is missing, unfinished, incomplete or of another version.
    """

    def __init__(self, folder: str | os.PathLike):
        if buckets.is_url(folder):
            folder = staging.local_copy(os.fspath(folder))
        self.path = version_folder(Path(folder))
        self.manifest = _json(self.path / MANIFEST)
        try:
            if (kind := self.manifest["file_format"]) != "array_record":
                raise DataError(
                    f"{self.path} holds {kind} files, which cannot be read in any order; make the "
                    f"records again as array_record files"
                )
            self.features = tuple(Feature.from_dict(fields) for fields in self.manifest["features"])
            self.size = int(self.manifest["settings"]["size"])
            self.files = {
                split: [
                    (self.path / _file_name(shard["file"]), _count(shard["records"]))
                    for shard in found["shards"]
                ]
                for split, found in self.manifest["splits"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{self.path / MANIFEST} is damaged: it lacks {error}; make the records again with "
                f"caphuman prepare"
            ) from error
        self._ends = {
            split: list(itertools.accumulate(count for _, count in files))
            for split, files in self.files.items()
        }
        self.splits = {split: ends[-1] if ends else 0 for split, ends in self._ends.items()}
        for file, _ in itertools.chain(*self.files.values()):
            if not file.is_file():
                raise DataError(
                    f"{file} is missing; copy it there again, or make the records again with "
                    f"caphuman prepare"
                )
        self._readers, self._lock = {}, threading.Lock()

    def __getstate__(self):
        return {**self.__dict__, "_readers": None, "_lock": None}

    def __setstate__(self, state):
        self.__dict__.update(state, _readers={}, _lock=threading.Lock())

    def feature(self, name: str) -> Feature | None:
        """The feature of that name, or None."""
        return next((f for f in self.features if f.name == name), None)

    def require(self, names: Collection[str]) -> None:
        """Raises DataError that names the columns that the records lack."""
        missing = sorted(set(names) - {feature.name for feature in self.features})
        if missing:
            raise DataError(
                f"{self.path} lacks {', '.join(missing)}, which training reads; an earlier version "
                f"made the records: make them again with caphuman prepare"
            )

    def known_feature(self, name: str) -> Feature:
        """The feature of that name. Raises DataError where the records do not have it."""
        feature = self.feature(name)
        if feature is None:
            raise DataError(f"{self.path} holds no {name}")
        return feature

    def count(self, split: str) -> int:
        """Number of records of a split. Raises DataError if it does not exist or is empty."""
        if not self.splits.get(split):
            having = ", ".join(f"{name} ({n})" for name, n in sorted(self.splits.items()))
            raise DataError(
                f"{self.path} has no records in split {split!r}; splits and their records: "
                f"{having or 'none'}"
            )
        return self.splits[split]

    def place(self, split: str, index: int) -> tuple[Path, int]:
        """File of record `index` of a split, and its number in that file."""
        number = bisect.bisect_right(self._ends[split], index)
        file, count = self.files[split][number]
        return file, index - self._ends[split][number] + count

    def read(self, split: str, indices: Iterable[int]) -> list[bytes]:
        """The messages of records, in the order of `indices`. Raises DataError, naming file and
        record, if one is damaged.
        """
        total, found = self.count(split), {}
        indices = [int(i) for i in indices]
        for index in indices:
            if not 0 <= index < total:
                raise DataError(
                    f"{self.path}: split {split!r} has no record {index}; its records are "
                    f"numbered from 0 to {total - 1}"
                )
            file, place = self.place(split, index)
            found.setdefault(file, {})[place] = index
        messages = {}
        for file, places in found.items():
            messages.update(zip(places.values(), self._read_file(split, file, list(places))))
        return [messages[index] for index in indices]

    def decode(self, message: bytes, only: Collection[str] | None = None) -> dict:
        """See `tf_example.decode`."""
        return tf_example.decode(self.features, message, only)

    def record(self, split: str, index: int, only: Collection[str] | None = None) -> dict:
        """One record, decoded; images stay encoded (`pixels`). Raises DataError naming file and
        record.
        """
        with self.naming(split, index):
            return self.decode(self.read(split, [index])[0], only)

    def pixels(self, name: str, encoded: bytes) -> np.ndarray:
        """Pixels of an image entry. Raises DataError."""
        return tf_example.decode_image(self.known_feature(name), encoded)

    def naming(self, split: str, index: int) -> _Naming:
        """A context that adds the file and the record to the message of a DataError."""
        return _Naming(self, split, index)

    def _read_file(self, split: str, file: Path, places: list[int]) -> list[bytes]:
        reader = self._reader(split, file)
        try:
            return reader.read(places)
        except RuntimeError as error:
            for place in places:  # which of them it is
                try:
                    reader.read([place])
                except RuntimeError as one:
                    raise DataError(
                        f"{_named(file, place)} is damaged: {one}; make the records again, or copy "
                        f"that file again"
                    ) from error
            raise DataError(f"{file} cannot be read: {error}") from error

    def _reader(self, split: str, file: Path):
        if file in self._readers:
            return self._readers[file]
        with self._lock:
            if file not in self._readers:
                self._readers[file] = self._open(split, file)
            return self._readers[file]

    def _open(self, split: str, file: Path):
        reader_type = array_record_reader()
        _allow_open_files(sum(map(len, self.files.values())))
        options = "readahead_buffer_size:0,max_parallelism:0"
        if self.splits[split] > _OFFLOAD:
            options += ",index_storage_option:offloaded,footer_prefetch_bytes:0"
        count = dict(self.files[split])[file]
        reader = reader_type(os.fspath(file), options=options, file_reader_buffer_size=1 << 15)
        if not reader.ok() or reader.num_records() != count:
            raise DataError(
                f"{file} is damaged or cut off: it has {reader.num_records()} readable records of "
                f"{count}; copy it again, or make the records again"
            )
        return reader


class _Naming:
    def __init__(self, folder: RecordsFolder, split: str, index: int):
        self._place = folder, split, index

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, DataError):
            folder, split, index = self._place
            named = _named(*folder.place(split, index))
            if named not in str(error):
                raise DataError(f"{named} (number {index} of {split}): {error}") from error


def _file_name(name: object) -> str:
    """The name of a shard, which lies in the folder itself."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"the name of a file in place of {name!r}")
    return name


def _count(number: object) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError(f"a number of records in place of {number!r}")
    return number


def _named(file: Path, place: int) -> str:
    return f"{file}, record {place}"


def version_folder(folder: Path) -> Path:
    """The folder that holds the manifest. Raises DataError that says what there is instead."""
    for path in (folder / NAME / VERSION, folder):
        if (path / MANIFEST).is_file():
            version = _json(path / MANIFEST).get("version", VERSION)
            if version != VERSION:
                raise DataError(
                    f"{path} holds records of version {version}, this program reads {VERSION}; "
                    f"make them again with caphuman prepare"
                )
            return path
    others = sorted(p.parent.name for p in (folder / NAME).glob(f"*/{MANIFEST}"))
    if others:
        raise DataError(
            f"{folder} holds records of version {', '.join(others)}, this program reads {VERSION}; "
            f"make them again with caphuman prepare"
        )
    if any(folder.glob(".work-*")):
        raise DataError(
            f"the records in {folder} are unfinished; run the same caphuman prepare again to "
            f"resume it"
        )
    raise DataError(
        f"{folder}: no records there; make them with caphuman prepare --photos PHOTOS --out "
        f"{folder}"
    )


def held_out_rule(folder: str | os.PathLike) -> dict:
    """The metadata entry `held_out` of a model that is trained on the records in a folder: training
    leaves out their split "test". The hash is None where the records cannot be read.
    """
    try:
        if buckets.is_url(folder):
            manifest = json_reader.parse(staging.read_manifest(os.fspath(folder))[1])
        else:
            manifest = _json(version_folder(Path(folder)) / MANIFEST)
        found = records_hash(manifest)
    except (DataError, ValueError):
        found = None
    return {"rule": "records", "sha256": found}


def _json(file: Path) -> dict:
    try:
        content = json_reader.read(file)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read: {error}; make the records again with caphuman prepare"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is damaged; make the records again with caphuman prepare")
    return content


def array_record_reader():
    """The class that reads array_record files. Raises DataError if the package is missing."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise DataError(
            f"records are read with the package array_record, which is not installed: pip install "
            f"'.[data]' ({error})"
        ) from error
    return ArrayRecordReader


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files (usually 1,024), since every file of a dataset stays open."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
