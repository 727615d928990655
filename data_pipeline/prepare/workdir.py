"""Unfinished work: the files that a run of `prepare` leaves, from which another run resumes.

    DIR/.work-FINGERPRINT/ listing/000000.jsonl …   the photos, sorted by key and cut into chunks:
      one chunk a line, LINES
                               lines a file
      listing/listing.json     numbers of photos and chunks, and a hash of the listing; written last
                               chunks/0000/0000000.records, .index a chunk's records, concatenated,
                               and what must be known of all photos; the index is written last
      plan/train-00000.json …, plan.json
                               which records make which shard; see data_pipeline.prepare.plan
      shards/NAME.json         size and hash of each finished shard
      version/                 the folder that becomes DIR/caphuman_records/1.0.0

Every file appears whole (caphuman_jax.io.files). What exists is not made again, and what is made
twice is the same.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import cv2
import numpy as np

from caphuman_jax.errors import CapHumanError, DataError
from caphuman_jax.io import files
from data_pipeline.records import tf_example
from data_pipeline.records.manifest import version_folder
from data_pipeline.records.schema import Feature, Layout, features

CHUNK = 32  # photos that are measured together, and lost when a worker is killed
LINES = 1024  # chunks of one listing file
PREFIX = ".work-"
# Errors that a photo may cause. Others (no memory, a lost device, a full disk) are not the photo's
# fault and stop the run.
_PHOTO_ERRORS = (
    CapHumanError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AssertionError,
    cv2.error,
)


class JobSettings(Protocol):
    """What a job needs of `PrepareSettings`, besides the fields that its measurer reads."""

    def layout(self) -> Layout: ...

    def to_dict(self) -> dict[str, Any]: ...

    def network_hashes(self) -> dict[str, str]: ...

    def fingerprint(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that workers need; pickled and sent to them.

    Attributes:
        out: folder for the records.
        folder: the work folder.
        source: of the photos, for `opener`.
        options: further arguments of `opener`.
        settings: PrepareSettings, or an object with its methods below and its fields thresholds,
            hold_out, same_person and seed.
        file_format: "array_record" or "tfrecord".
        measurer: a module's function, settings -> an object with `measure` as measure.Measurer.
        opener: `open_source`.
    """

    out: str
    folder: str
    source: str
    options: dict
    settings: JobSettings
    file_format: str
    measurer: Callable
    opener: Callable

    @property
    def version(self) -> str:
        """Where the shards are written: in the work folder, if it can be renamed at the end."""
        return (
            files.join(self.folder, "version")
            if files.is_local(self.out)
            else version_folder(self.out)
        )

    def features(self) -> tuple[Feature, ...]:
        """The records' features."""
        return features(self.settings.layout())

    def path(self, *parts: str) -> str:
        """A path in the work folder."""
        return files.join(self.folder, *parts)

    def open_source(self):
        """The photos."""
        return self.opener(self.source, **self.options)


@dataclasses.dataclass(frozen=True)
class Listing:
    """Numbers of photos and chunks, and the SHA-256 of keys, persons and captions, but not of the
    photos' places.
    """

    photos: int
    chunks: int
    sha256: str


def write_listing(items: Iterable, folder: str | None) -> Listing:
    """Write listing/ of a work folder, or with None only return what it would be. Raises DataError
    if two photos have the same key, or keys are not sorted.
    """
    names, photos, chunks, last = hashlib.sha256(), 0, 0, None
    lines: list[bytes] = []
    items = iter(items)
    while chunk := list(itertools.islice(items, CHUNK)):
        for item in chunk:
            if last is not None and item.key <= last:
                raise DataError(
                    f"two photos have the name {item.key!r}; names must be unique"
                    if item.key == last
                    else f"the source lists {item.key!r} after {last!r}; it must be sorted"
                )
            last = item.key
            names.update(json.dumps([item.key, item.person, list(item.captions)]).encode())
        photos, chunks = photos + len(chunk), chunks + 1
        if folder:
            lines.append(json.dumps([_fields(item) for item in chunk]).encode() + b"\n")
        if folder and len(lines) == LINES:
            files.write(_listing_file(folder, chunks - 1), b"".join(lines))
            lines = []
    if folder and lines:
        files.write(_listing_file(folder, chunks - 1), b"".join(lines))
    listing = Listing(photos, chunks, names.hexdigest())
    if folder:
        files.write(
            files.join(folder, "listing", "listing.json"),
            json.dumps(dataclasses.asdict(listing)).encode(),
        )
    return listing


def read_listing(folder: str) -> Listing | None:
    """What `write_listing` wrote, or None."""
    path = files.join(folder, "listing", "listing.json")
    return Listing(**json.loads(files.read(path))) if files.exists(path) else None


def chunk_places(listing_file: int, folder: str) -> Iterator[tuple[int, int, int]]:
    """(number, offset of its line, length of its line) of every chunk of a listing file."""
    offset = 0
    for number, line in enumerate(
        files.read(_listing_file(folder, listing_file * LINES)).splitlines(keepends=True)
    ):
        yield listing_file * LINES + number, offset, len(line)
        offset += len(line)


def read_items(place: tuple[int, int, int], folder: str, item_type: Callable) -> list:
    """The items of a chunk."""
    number, offset, length = place
    return [
        item_type(*_tuples(fields))
        for fields in json.loads(files.read(_listing_file(folder, number), offset, length))
    ]


def chunk_path(folder: str, number: int, ending: str) -> str:
    """chunks/…/0000012.index or .records."""
    return files.join(folder, "chunks", f"{number // 1000:04d}", f"{number:07d}.{ending}")


def is_measured(folder: str, number: int) -> bool:
    """Whether a chunk is done."""
    return files.exists(chunk_path(folder, number, "index"))


def measured_chunks(folder: str) -> Iterator[int]:
    """Numbers of the chunks that are done, in no order."""
    for name in files.names(files.join(folder, "chunks"), below="*"):
        if name.endswith(".index"):
            yield int(name.partition(".")[0])


def measure_chunk(
    items: list, number: int, folder: str, found: tuple[Feature, ...], source, measurer
) -> dict:
    """Measure a chunk's photos and write its files. Returns the index's first line, {"kept",
    "dropped": {reason: number}}.
    """
    messages, entries, offset = [], [], 0
    without_partners = [feature for feature in found if feature.name != "partners"]
    for item, measured in zip(items, _measured(items, source, measurer), strict=True):
        if hasattr(measured, "reason"):
            entries.append({"key": item.key, "reason": measured.reason, "detail": measured.detail})
            continue
        record = measured.record
        message = tf_example.encode(without_partners, record)
        entries.append(
            {
                "key": item.key,
                "person": record["person"],
                "sha256": record["sha256"],
                "dhash": int(measured.dhash),
                "recognition": base64.b64encode(
                    np.asarray(record["recognition/mobilefacenet"], "<f4").tobytes()
                ).decode(),
                "place": [number, offset, len(message), zlib.crc32(message)],
            }
        )
        messages.append(message)
        offset += len(message)
    summary = {
        "kept": len(messages),
        "dropped": dict(sorted(Counter(e["reason"] for e in entries if "reason" in e).items())),
    }
    files.write(chunk_path(folder, number, "records"), b"".join(messages))
    files.write(
        chunk_path(folder, number, "index"),
        b"".join(json.dumps(line).encode() + b"\n" for line in (summary, *entries)),
    )
    return summary


def read_summary(folder: str, number: int) -> dict:
    """A measured chunk's {"kept", "dropped": {reason: number}}."""
    return json.loads(files.read(chunk_path(folder, number, "index")).partition(b"\n")[0])


def read_index(folder: str, number: int) -> list[dict]:
    """The photos of a measured chunk. Raises DataError if the index is damaged."""
    path = chunk_path(folder, number, "index")
    try:
        _, *lines = files.read(path).splitlines()
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise DataError(f"{path} is damaged; remove it and rerun the same command") from error


def recognition(entry: dict) -> np.ndarray:
    """The recognition vector of an entry of the index, (D,) float32."""
    return np.frombuffer(base64.b64decode(entry["recognition"]), "<f4")


def read_record(folder: str, place: list[int]) -> bytes:
    """A record's message without partners, by its place from the index. Raises DataError if it is
    damaged.
    """
    number, offset, length, crc = place
    path = chunk_path(folder, number, "records")
    try:
        message = files.read(path, offset, length)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing; remove {path.removesuffix('records')}index and rerun the same "
            f"command"
        ) from error
    except OSError as error:
        if "too early" not in str(error):
            raise
        message = b""
    if zlib.crc32(message) != crc:
        raise DataError(
            f"{path} is damaged; remove {path.removesuffix('records')}index and rerun the same "
            f"command"
        )
    return message


def _measured(items, source, measurer) -> list:
    """The measurer's result for every item. A photo that raises an error is dropped, and the others
    are measured without it.
    """
    batch = [(item, _read(source, item)) for item in items]
    try:
        return measurer.measure(batch)
    except _PHOTO_ERRORS:
        return [_measured_alone(measurer, *one) for one in batch]


def _measured_alone(measurer, item, data):
    try:
        return measurer.measure([(item, data)])[0]
    except _PHOTO_ERRORS as error:
        return _Failed(item.key, "error", f"{type(error).__name__}: {error}")


@dataclasses.dataclass(frozen=True)
class _Failed:
    key: str
    reason: str
    detail: str


def _read(source, item) -> bytes | DataError:
    try:
        return source.read(item)
    except DataError as error:
        return error


def _listing_file(folder: str, chunk: int) -> str:
    return files.join(folder, "listing", f"{chunk // LINES:06d}.jsonl")


def _fields(item) -> list:
    return [getattr(item, field.name) for field in dataclasses.fields(item)]


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
