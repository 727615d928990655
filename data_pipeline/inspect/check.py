"""Checks every record of a dataset, on every core, and names what is wrong."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from caphuman_jax.errors import DataError
from data_pipeline.inspect import statistics
from data_pipeline.inspect.links import check_keys, check_partners
from data_pipeline.inspect.problem import Problem
from data_pipeline.inspect.record_rules import check_record
from data_pipeline.records import shard_file, tf_example
from data_pipeline.records.schema import Feature

# problems after which checking stops, so that they cannot fill the memory
ENOUGH = 10_000
_CHUNK = 32  # records a worker reads at a time: about 16 MB at 512²


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
    across = [check_keys(found, place, key_of)]
    for split in found:
        across.append(
            check_partners(
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
