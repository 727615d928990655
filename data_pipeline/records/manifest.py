"""manifest.json: what a finished folder of records holds, and what made it. It is written last, so
a folder without one is not finished. Its entries:

* format, version: "caphuman_records", "1.0.0" (schema.NAME, schema.VERSION);
* file_format: "array_record" or "tfrecord";
* features: every feature (schema.Feature.to_dict), sorted by name;
* layout: what decides their shapes (schema.Layout);
* settings: of `prepare`; networks: SHA-256 of every network that measured;
* fingerprint: SHA-256 over settings and networks;
* source: {"text", "options", "photos", "sha256"}: what was read, how many photos, and the hash of
  their names, persons and captions;
* photos, kept: numbers; dropped: {reason: number}; moved: number of photos that were to be held out
  and moved to train, see prepare.splits;
* splits: {"train": {"records", "bytes", "shards": [{"file", "records", "bytes", "sha256"}, …]},
  "test": …}; "bytes" of a split are its records', of a shard its file's.

dropped.jsonl next to it has one line {"key", "reason", "detail"} for every photo that is in no
split, sorted by key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from caphuman_jax.errors import DataError
from caphuman_jax.io import files, json_reader
from data_pipeline.records.schema import NAME, VERSION

MANIFEST, DROPPED = "manifest.json", "dropped.jsonl"
ENDINGS = {
    "array_record": "array_record",
    "tfrecord": "tfrecord",
}  # file formats and what their files' names hold


def version_folder(folder: str) -> str:
    """The folder inside DIR that holds the records."""
    return files.join(folder, NAME, VERSION)


def shard_name(split: str, number: int, count: int, file_format: str) -> str:
    """TFDS's name of a shard's file."""
    return f"{NAME}-{split}.{ENDINGS[file_format]}-{number:05d}-of-{count:05d}"


def read_manifest(folder: str) -> dict | None:
    """The manifest of DIR, or None if there is none. Raises DataError if it is damaged or of
    another format."""
    path = files.join(version_folder(folder), MANIFEST)
    if not files.exists(path):
        return None
    try:
        manifest = json_reader.parse(files.read(path))
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


def records_hash(manifest: Mapping[str, Any]) -> str | None:
    """SHA-256 of what the records are: settings, networks and the bytes of every file, wherever the
    folder lies. None where the manifest does not say.
    """
    try:
        files = {
            split: [shard["sha256"] for shard in found["shards"]]
            for split, found in manifest["splits"].items()
        }
        content = {"fingerprint": manifest["fingerprint"], "files": files}
    except (AttributeError, KeyError, TypeError):
        return None
    return hashlib.sha256(to_json(content)).hexdigest()


def to_json(content: dict) -> bytes:
    """JSON with the same bytes for the same content."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
