"""manifest.json: what a finished folder of records holds, and what made it. It is written last: a
folder without one is not finished.

    format, version      "caphuman_records", "1.0.0": of the records (features.NAME,
                         features.VERSION) file_format          "array_record" or "tfrecord"
                         features, layout     every feature (features.Feature.to_dict), sorted by
                         name, and what decides their shapes (features.Layout) settings, networks
                         what `prepare` was asked for, and the sha256 of every network that measured
                         fingerprint          sha256 over both source               {"text",
                         "options", "photos", "sha256"}: what was read, how many photos, and the
                         hash of their names, persons and captions photos, kept         numbers;
                         dropped: {reason: number}; moved: held-out photos that were put back to
                         train on, see data_pipeline.splits splits               {"train":
                         {"records", "bytes", "shards": [{"file", "records", "bytes", "sha256"},
                         …]}, "test": …}; bytes of a split are its records', bytes of a shard its
                         file's

Beside it lies dropped.jsonl: one line {"key", "reason", "detail"} for every photo that is in no
split, sorted by key."""

from __future__ import annotations

import json

from caphuman_jax.errors import DataError
from caphuman_jax.io import files
from data_pipeline.records.schema import NAME, VERSION

MANIFEST, DROPPED = "manifest.json", "dropped.jsonl"
ENDINGS = {
    "array_record": "array_record",
    "tfrecord": "tfrecord",
}  # file formats and what their files' names hold


def version_folder(folder: str) -> str:
    """Where the records of DIR lie."""
    return files.join(folder, NAME, VERSION)


def shard_name(split: str, number: int, count: int, file_format: str) -> str:
    """TFDS's name of a shard's file."""
    return f"{NAME}-{split}.{ENDINGS[file_format]}-{number:05d}-of-{count:05d}"


def read_manifest(folder: str) -> dict | None:
    """The manifest of DIR, or None where there is none. Raises DataError for one that is damaged or
    of another format.
    """
    path = files.join(version_folder(folder), MANIFEST)
    if not files.exists(path):
        return None
    try:
        manifest = json.loads(files.read(path))
        name, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}); prepare the photos again into another folder"
        ) from error
    if (name, version) != (NAME, VERSION):
        raise DataError(
            f"{path} is of {name} {version}, this program writes {NAME} {VERSION}; choose another "
            f"folder"
        )
    return manifest


def to_json(content: dict) -> bytes:
    """JSON that is the same bytes for the same content."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
