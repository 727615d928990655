"""Checks every record of a dataset, on every core, and names what is wrong."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from caphuman_jax.errors import DataError
from caphuman_jax.io import json_reader
from caphuman_jax.models.tokenizer import END_ID, START_ID
from data_pipeline.inspect import statistics
from data_pipeline.records import shard_file, tf_example
from data_pipeline.records.schema import Feature

# problems after which checking stops, so that they cannot fill the memory
ENOUGH = 10_000
_CHUNK = 32  # records a worker reads at a time: about 16 MB at 512²
_MARKERS = {"jpeg": (b"\xff\xd8", b"\xff\xd9"), "png": (b"\x89PNG", b"IEND\xaeB`\x82")}
_MAY_BE_NAN = frozenset({"colours"})


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong; `number` of the record in its file, from 0, or -1 for the file."""

    file: str
    number: int
    key: str
    feature: str
    what: str

    def __str__(self) -> str:
        place = [
            self.file,
            *([f"record {self.number}"] if self.number >= 0 else []),
            *([f"key {self.key!r}"] if self.key else []),
            *([self.feature] if self.feature else []),
        ]
        return f"{', '.join(place)}: {self.what}"


@dataclasses.dataclass(frozen=True)
class Checked:
    """What was found. With more than ENOUGH problems the rest was not checked.

    Attributes:
        problems: sorted.
        tally: counts over the records.
        records: {split: number of records}.
        people: {split: {hash of the person, 0 for none: number of photos}}.
        paired: {split: number of records with partners}.
    """

    problems: list[Problem]
    tally: statistics.Tally
    records: dict[str, int]
    people: dict[str, dict[int, int]]
    paired: dict[str, int]


@dataclasses.dataclass
class _Part:
    """What a worker found in a run of records, and what is compared across runs: hashes of keys and
    persons, and partners.
    """

    problems: list[Problem]
    tally: statistics.Tally
    keys: np.ndarray
    persons: np.ndarray
    partners: np.ndarray


def check(
    folder: Path,
    manifest: dict,
    *,
    fast: bool = False,
    workers: int | None = None,
    hints: Callable | None = None,
    progress: Callable = lambda runs, total: runs,
) -> Checked:
    """Check every record of a version's folder against its manifest.

    Memory is about 50 bytes a record.

    Args:
        folder: the version's folder.
        manifest: its manifest.
        fast: check numbers only; do not decode images or hash files.
        workers: processes; None: one for each core.
        hints: records -> [(number of the record, what is wrong)], compares stored hints with the
            head; must be picklable.
        progress: (iterator, total) -> iterator.
    """
    features = [Feature.from_dict(fields) for fields in manifest["features"]]
    problems, readable = _check_files(folder, manifest, fast)
    runs = [
        (split, shard["file"], start, min(start + _CHUNK, readable[shard["file"]]))
        for split, facts in manifest["splits"].items()
        for shard in facts["shards"]
        for start in range(0, readable[shard["file"]], _CHUNK)
    ]
    task = functools.partial(_check_run, folder, manifest["file_format"], features, fast, hints)
    tally, parts = statistics.Tally(), {split: [] for split in manifest["splits"]}
    with _pool(min(workers or os.cpu_count() or 1, len(runs) or 1)) as apply:
        for run, part in progress(zip(runs, apply(task, [run[1:] for run in runs])), len(runs)):
            problems += part.problems
            tally.merge(part.tally)
            parts[run[0]].append((run, part))
            if len(problems) > ENOUGH:
                break
    found = {split: _joined(parts[split]) for split in parts}
    place = {split: _places([run for run, _ in parts[split]]) for split in parts}
    key_of = functools.partial(_key_of, folder, manifest["file_format"], features)
    across = [_check_keys(found, place, key_of)]
    for split in found:
        across.append(
            _check_partners(
                *found[split],
                place=place[split],
                key_of=key_of,
                complete=len(found[split][0]) == manifest["splits"][split]["records"],
            )
        )
    problems += itertools.islice(itertools.chain(*across), max(ENOUGH + 1 - len(problems), 0))
    return Checked(
        sorted(problems),
        tally,
        {split: len(keys) for split, (keys, _, _) in found.items()},
        {
            split: dict(zip(*(a.tolist() for a in np.unique(persons, return_counts=True))))
            for split, (_, persons, _) in found.items()
        },
        {
            split: int(np.any(partners >= 0, axis=1).sum())
            for split, (_, _, partners) in found.items()
        },
    )


def check_record(
    features: Sequence[Feature], record: dict, pictures: bool = True
) -> Iterator[tuple[str, str]]:
    """(feature, what is wrong) of a decoded record; `pictures`: decode its images too."""
    for feature in features:
        value = record[feature.name]
        if feature.kind == "image":
            yield from ((feature.name, what) for what in _check_image(feature, value, pictures))
        elif feature.kind == "array":
            yield from ((feature.name, what) for what in _check_range(feature, value))
        rule = _RULES.get(
            feature.name.partition("/")[0]
            if feature.name.startswith("recognition/")
            else feature.name
        )
        what = rule(feature, value) if rule else None
        if what:
            yield feature.name, what


def _check_image(feature: Feature, encoded: bytes, pictures: bool) -> Iterator[str]:
    begin, end = _MARKERS[str(feature.encoding)]
    if not (encoded.startswith(begin) and encoded.endswith(end)):
        yield f"is not a whole {feature.encoding} file"
    elif pictures:
        try:
            tf_example.decode_image(feature, encoded)
        except DataError as error:
            yield str(error).removeprefix(f"{feature.name} ")


def _check_range(feature: Feature, array: np.ndarray) -> Iterator[str]:
    values = np.asarray(array, np.float64)
    odd = ~np.isfinite(values)
    if feature.name in _MAY_BE_NAN:
        odd &= ~np.isnan(values)
    if odd.any():
        first = tuple(int(i[0]) for i in np.nonzero(odd))
        yield f"holds {int(odd.sum())} values that are not finite, the first at {first}"
    low = -np.inf if feature.low is None else feature.low
    high = np.inf if feature.high is None else feature.high
    beyond = np.isfinite(values) & ((values < low) | (values > high))
    if beyond.any():
        yield f"holds {float(values[beyond][0]):.6g}, which is not from {low:g} to {high:g}"


def _whole_rectangle(_, covered):
    return (
        None
        if covered[0] < covered[2] and covered[1] < covered[3]
        else f"is not a rectangle: {covered.tolist()}"
    )


def _in_the_square(_, landmarks):
    outside = np.any((landmarks[:, :2] < 0) | (landmarks[:, :2] > 1), axis=1)
    return f"{int(outside.sum())} landmarks lie outside of the square" if outside.any() else None


def _a_rotation(_, matrix):
    off = float(np.abs(matrix @ matrix.T - np.eye(3)).max())
    return (
        None
        if off < 1e-3 and np.linalg.det(matrix) > 0
        else f"is not a rotation: off by {off:.2g}, determinant {np.linalg.det(matrix):.3g}"
    )


def _a_unit_vector(feature, vector):
    length = float(np.linalg.norm(vector))
    if feature.name == "recognition/dlib":  # of about 1.3, never normalized
        return None if length > 0.1 else f"has the length {length:.3g}"
    return None if abs(length - 1) < 2e-3 else f"has the length {length:.6g}, not 1"


def _whole_captions(_, ids):
    if np.any(ids[:, 0] != START_ID):
        row = int(np.argmax(ids[:, 0] != START_ID))
        return f"row {row} does not begin with the start token {START_ID}"
    ends = np.any(ids == END_ID, axis=1)
    return None if ends.all() else f"row {int(np.argmin(ends))} has no end token {END_ID}"


def _json_object(_, text):
    try:
        return None if isinstance(json_reader.parse(text), dict) else "is not a JSON object"
    except ValueError as error:
        return f"is not JSON: {error}"


_RULES: dict[str, Callable] = {
    "key": lambda _, text: None if text else "is empty",
    "sha256": lambda _, text: (
        None if re.fullmatch("[0-9a-f]{64}", text) else f"{text!r} is not a SHA-256"
    ),
    "captions": lambda _, texts: (
        None if texts and all(texts) else "has no caption, or an empty one"
    ),
    "attributes": _json_object,
    "caption_ids": _whole_captions,
    "covered": _whole_rectangle,
    "landmarks": _in_the_square,
    "head/rotation": _a_rotation,
    "recognition": _a_unit_vector,
    "head/scale": lambda _, scale: None if scale > 0 else "is not above 0",
}


def _check_files(folder, manifest, fast):
    """Problems of whole files, and {file: number of records that can be read}."""
    problems, readable = [], {}
    for facts in manifest["splits"].values():
        for shard in facts["shards"]:
            name, wrong = shard["file"], functools.partial(Problem, shard["file"], -1, "", "")
            readable[name] = 0
            try:
                if not fast and _sha256(folder / name) != shard["sha256"]:
                    problems.append(
                        wrong("its SHA-256 is not the manifest's: the file was changed or damaged")
                    )
                count = shard_file.open_file(folder / name, manifest["file_format"]).count
            except FileNotFoundError:
                problems.append(wrong("the file is missing"))
                continue
            except (DataError, OSError) as error:
                problems.append(wrong(str(error).removeprefix(f"{folder / name}: ")))
                continue
            if count != shard["records"]:
                problems.append(
                    wrong(f"it holds {count} records, the manifest says {shard['records']}")
                )
            readable[name] = count
        total = sum(shard["records"] for shard in facts["shards"])
        if total != facts["records"]:
            problems.append(
                Problem(
                    "manifest.json",
                    -1,
                    "",
                    "",
                    f"{facts['records']} records in a split whose shards have {total}",
                )
            )
    named = set(readable) | {"manifest.json", "dropped.jsonl"}
    problems += [
        Problem(path.name, -1, "", "", "the manifest does not name this file")
        for path in sorted(folder.iterdir())
        if "_record" in path.name and path.name not in named
    ]
    return problems, readable


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_run(folder, file_format, features, fast, hints, run) -> _Part:
    """Records start to stop of a file."""
    file, start, stop = run
    part = _Part(
        [],
        statistics.Tally(),
        np.zeros(stop - start, np.uint64),
        np.zeros(stop - start, np.uint64),
        np.full((stop - start, 3), -1, np.int64),
    )
    whole = []
    for row, message in enumerate(_shard(folder / file, file_format).read(start, stop)):
        record, wrong = (
            (None, [("", str(message))])
            if isinstance(message, DataError)
            else _decode(features, message)
        )
        key = record.get("key", "") if record else ""
        if record is not None:
            part.keys[row], part.persons[row] = (
                _hash(key),
                _hash(record["person"]) if record.get("person") else 0,
            )
            part.partners[row] = record.get("partners", -1)
            if not wrong:
                wrong = list(check_record(features, record, not fast))
                if not any(name in statistics.FEATURES for name, _ in wrong):
                    part.tally.add(record)
                whole.append((row, record))
        part.problems += [Problem(file, start + row, key, name, what) for name, what in wrong]
    for i, what in hints([record for _, record in whole]) if hints and whole and not fast else ():
        row, record = whole[i]
        part.problems.append(Problem(file, start + row, record["key"], "hints", what))
    return part


def _decode(features, message):
    """The record, as far as it can be decoded, or None; and what is wrong with it."""
    try:
        return tf_example.decode(features, message), []
    except DataError:
        record, wrong = {}, []
        for feature in features:
            try:
                record |= tf_example.decode([feature], message)
            except DataError as error:
                if "tf.Example" in str(error):
                    return None, [("", str(error))]
                wrong.append((feature.name, str(error).removeprefix(f"{feature.name} ")))
        return record, wrong


@functools.lru_cache(maxsize=4)
def _shard(path, file_format):
    return shard_file.open_file(path, file_format)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def _joined(parts):
    """Hashes of keys and persons, and partners, of a split in its records' order."""
    parts = [part for _, part in parts] or [
        _Part(
            [],
            statistics.Tally(),
            np.zeros(0, np.uint64),
            np.zeros(0, np.uint64),
            np.zeros((0, 3), np.int64),
        )
    ]
    column = lambda name: np.concatenate([getattr(part, name) for part in parts])
    return column("keys"), column("persons"), column("partners")


def _places(runs):
    """index → (file, number of the record in it), of a split whose runs are given in order."""
    ends = np.cumsum([stop - start for _, _, start, stop in runs])

    def place(index):
        at = int(np.searchsorted(ends, index, side="right"))
        _, file, start, stop = runs[at]
        return file, start + int(index) - (int(ends[at]) - (stop - start))

    return place


def _key_of(folder, file_format, features, file, number, name="key"):
    message = _shard(folder / file, file_format).read(number, number + 1)[0]
    if isinstance(message, DataError):
        raise message
    return tf_example.decode(features, message, {name})[name]


def _check_keys(found, place, key_of):
    """Keys that occur twice, and people who are in two splits."""
    splits = list(found)
    keys = np.concatenate([found[split][0] for split in splits])
    persons = np.concatenate([found[split][1] for split in splits])
    owner = np.repeat(np.arange(len(splits)), [len(found[split][0]) for split in splits])
    index = np.concatenate([np.arange(len(found[split][0])) for split in splits])
    where = lambda row: place[splits[owner[row]]](index[row])
    order = np.argsort(keys, kind="stable")
    for before, row in zip(order[:-1][_twins(keys[order])], order[1:][_twins(keys[order])]):
        file, number = where(row)
        first, first_number = where(before)
        yield Problem(
            file,
            number,
            key_of(file, number),
            "key",
            f"is also that of record {first_number} of {first}",
        )
    order = np.lexsort((owner, persons))
    strangers = _twins(persons[order]) & (owner[order][1:] != owner[order][:-1])
    for before, row in zip(order[:-1][strangers], order[1:][strangers]):
        file, number = where(row)
        person = key_of(file, number, "person")
        yield Problem(
            file,
            number,
            key_of(file, number),
            "person",
            f"{person!r} is also in the split {splits[owner[before]]}",
        )


def _twins(ordered):
    return (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)


def _check_partners(keys, persons, partners, place, key_of, complete):
    """Partners are other records of the split, show the same person, and name one another unless
    their own lists are full.
    """

    def problem(row, what):
        file, number = place(row)
        return Problem(file, number, key_of(file, number), "partners", what)

    for slot in range(partners.shape[1]):
        named = np.flatnonzero(partners[:, slot] >= 0)
        other = partners[named, slot]
        beyond = (other >= len(keys)) if complete else np.zeros(len(named), bool)
        for row in named[beyond | (other == named)]:
            yield problem(
                row,
                f"names record {partners[row, slot]} of {len(keys)}"
                + (", itself" if partners[row, slot] == row else ""),
            )
        sound = (other < len(keys)) & (other != named)
        named, other = named[sound], other[sound]
        known = keys[other] != 0 if complete else np.zeros(len(named), bool)
        back = np.any(partners[other] == named[:, None], axis=1) | np.all(
            partners[other] >= 0, axis=1
        )
        for row in named[known & ~back]:
            yield problem(row, f"names record {partners[row, slot]}, which does not name it")
        differ = (persons[other] != persons[named]) & (persons[other] != 0) & (persons[named] != 0)
        for row in named[known & differ]:
            yield problem(row, f"names record {partners[row, slot]}, which shows another person")


class _pool:
    """`map` over worker processes, or in this process if one is enough."""

    def __init__(self, workers: int):
        self.executor = None
        if workers > 1:
            self.executor = concurrent.futures.ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), _begin_worker
            )

    def __enter__(self):
        return self.executor.map if self.executor else map

    def __exit__(self, *_):
        if self.executor:
            self.executor.shutdown(cancel_futures=True)


def _begin_worker():
    import cv2

    cv2.setNumThreads(1)
    os.environ |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
