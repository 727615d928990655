"""Decides which records a dataset holds, in which split, order and file, for all photos at once and
from their indexes alone.

* plan/SPLIT-00000.json, for each shard: {"records": [[place, partners], …]}, with the place as in
  the index of the record's chunk;
* plan/plan.json: {"photos", "kept", "dropped": {reason: number}, "moved": number, "shards":
  [{"split", "file", "plan", "sha256"}, …]}, with the SHA-256 of the shard's plan.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from array import array
from collections import Counter

import numpy as np

from caphuman_jax.errors import DataError
from caphuman_jax.io import files
from data_pipeline.prepare import workdir
from data_pipeline.prepare.duplicates import exact_duplicates, near_duplicates
from data_pipeline.prepare.splits import ALL_PAIRS, hold_out, partners, persons_by_recognition
from data_pipeline.records.manifest import DROPPED, shard_name
from data_pipeline.records.schema import RECOGNITION

# About the size of one file: large enough to be read at full speed, small enough for hundreds of
# hosts to share 20 million photos.
SHARD_BYTES = 256 << 20
SPLITS = ("train", "test")


def make_plan(job: workdir.Job) -> list[dict]:
    """Write the plan of a job whose chunks are all measured, and dropped.jsonl. Returns the shards.
    Raises DataError if no photo is left.
    """
    listing = workdir.read_listing(job.folder)
    assert listing is not None, "`prepare` writes it first"
    with tempfile.TemporaryFile() as spare:
        photos = _Photos(job.folder, listing.chunks, spare)
        splits = _split(photos, job.settings)
    if not splits["train"]:
        raise DataError(_nothing_left(photos, listing.photos))
    shards = [shard for split in SPLITS for shard in _plan_split(job, split, splits[split], photos)]
    dropped = sorted(photos.dropped)
    files.write(
        files.join(job.version, DROPPED),
        b"".join(
            json.dumps(
                {"key": key, "reason": reason, "detail": detail}, ensure_ascii=False
            ).encode()
            + b"\n"
            for key, reason, detail in dropped
        ),
    )
    content = {
        "photos": listing.photos,
        "kept": sum(map(len, splits.values())),
        "moved": photos.moved,
        "shards": shards,
        "dropped": dict(sorted(Counter(reason for _, reason, _ in dropped).items())),
    }
    files.write(job.path("plan", "plan.json"), json.dumps(content).encode())
    return shards


def read_plan(job: workdir.Job) -> dict | None:
    """What `make_plan` wrote to plan.json, or None."""
    path = job.path("plan", "plan.json")
    return json.loads(files.read(path)) if files.exists(path) else None


class _Photos:
    """Columns over the photos that passed the quality filter, sorted by key.

    Attributes:
        keys: texts.
        persons: texts.
        sha256: (N,) 32 bytes each, as in the index.
        dhash: (N,) uint64, as in the index.
        places: (N, 4) int64, as in the index.
        vectors: (N, D) float32 recognition vectors of length 1, in an unnamed file, since they
            would take most of the memory.
        dropped: (key, reason, detail) of the photos that were dropped.
        moved: see `splits.Split`, their number.
    """

    def __init__(self, folder: str, chunks: int, spare):
        self.keys: list[str] = []
        self.persons: list[str] = []
        self.dropped: list[tuple[str, str, str]] = []
        self.moved = 0
        sha256, dhash, places = bytearray(), array("Q"), array("q")
        for number in range(chunks):
            for entry in workdir.read_index(folder, number):
                if "reason" in entry:
                    self.dropped.append((entry["key"], entry["reason"], entry["detail"]))
                    continue
                self.keys.append(entry["key"])
                self.persons.append(sys.intern(entry["person"]))
                sha256 += bytes.fromhex(entry["sha256"])
                dhash.append(entry["dhash"])
                places.extend(entry["place"])
                vector = workdir.recognition(entry)
                spare.write(
                    (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype("<f4").tobytes()
                )
        spare.flush()
        width = RECOGNITION["mobilefacenet"]
        self.sha256, self.dhash = np.frombuffer(sha256, "S32"), np.frombuffer(dhash, np.uint64)
        self.places = np.frombuffer(places, np.int64).reshape(-1, 4)
        self.vectors = (
            np.memmap(spare, "<f4", "r", shape=(len(self.keys), width))
            if self.keys
            else np.zeros((0, width), np.float32)
        )

    def drop(self, number: int, reason: str, detail: str) -> None:
        """Record that a photo is left out."""
        self.dropped.append((self.keys[number], reason, detail))


def _split(photos: _Photos, settings) -> dict[str, list[int]]:
    """Numbers of the photos of each split, in their final order. Photos that are left out and
    persons that are found are recorded in `photos`.
    """
    there = np.ones(len(photos.keys), bool)
    if settings.thresholds.duplicates == "drop":
        for repeat, first in exact_duplicates(photos.sha256).items():
            there[repeat] = False
            photos.drop(repeat, "duplicate", f"the same file as {photos.keys[first]}")
        near = near_duplicates(
            photos.dhash, settings.thresholds.duplicate_bits, photos.vectors, np.flatnonzero(there)
        )
        for repeat, first in sorted(near.items()):
            there[repeat] = False
            photos.drop(
                repeat, "duplicate", f"the same picture as {photos.keys[first]}, saved again"
            )
    left = np.flatnonzero(there)
    keys, persons = [photos.keys[i] for i in left], [photos.persons[i] for i in left]
    vectors = photos.vectors[left] if len(left) <= ALL_PAIRS else None
    given = settings.same_person == "given"
    if not given:
        assert vectors is not None, "`check_photos` refuses more photos"
        persons = [keys[i] for i in persons_by_recognition(vectors)]
        for i, person in zip(left, persons, strict=True):
            photos.persons[i] = person
    split = hold_out(keys, persons, settings.hold_out, vectors, given)
    photos.moved = len(split.moved)
    for i, held in sorted(split.repeated.items()):
        photos.drop(
            left[i], "held_out_person", f"shows the same person as {keys[held]}, who is held out"
        )
    train = [i for i in np.flatnonzero(~split.test) if i not in split.repeated]
    order = lambda i: hashlib.sha256(f"{settings.seed}:{keys[i]}".encode()).digest()
    return {
        name: [int(left[i]) for i in sorted(numbers, key=order)]
        for name, numbers in zip(SPLITS, (train, np.flatnonzero(split.test)), strict=True)
    }


def _plan_split(job: workdir.Job, split: str, numbers: list[int], photos: _Photos) -> list[dict]:
    """Write the plans of a split's shards, of about SHARD_BYTES each."""
    if not numbers:
        return []
    same = partners([photos.persons[i] for i in numbers])
    count = -(-int(photos.places[numbers, 2].sum()) // SHARD_BYTES)
    shards = []
    for shard in range(count):
        part = range(shard * len(numbers) // count, (shard + 1) * len(numbers) // count)
        plan = json.dumps(
            {"records": [[photos.places[numbers[i]].tolist(), same[i].tolist()] for i in part]}
        ).encode()
        name = f"{split}-{shard:05d}.json"
        files.write(job.path("plan", name), plan)
        shards.append(
            {
                "split": split,
                "file": shard_name(split, shard, count, job.file_format),
                "plan": name,
                "sha256": hashlib.sha256(plan).hexdigest(),
            }
        )
    return shards


def _nothing_left(photos: _Photos, listed: int) -> str:
    reasons = Counter(reason for _, reason, _ in photos.dropped).most_common()
    key, _, detail = min(photos.dropped)
    return (
        f"none of {listed} photos can be used: "
        f"{', '.join(f'{reason} {number}' for reason, number in reasons)}; for one, {key}: "
        f"{detail}; "
        "--min-face and the options after it decide which photos are good enough"
    )
