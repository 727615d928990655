"""Writes the files of a dataset; each is a function of its plan and the chunks alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np

from caphuman_jax.io import files
from data_pipeline.prepare import workdir
from data_pipeline.records import tf_example
from data_pipeline.records.schema import PARTNERS, Feature

_PARTNERS = (Feature("partners", "array", (PARTNERS,), "int64"),)


def write_shard(job: workdir.Job, shard: dict) -> dict:
    """Write one shard of the plan, unless it exists.

    Returns:
        {"split", "file", "records", "bytes" of the file, "message_bytes", "sha256", "plan"}.
    """
    marker = job.path("shards", f"{shard['file']}.json")
    path = files.join(job.version, shard["file"])
    if files.exists(marker) and files.exists(path):
        done = json.loads(files.read(marker))
        if done["plan"] == shard["sha256"]:
            return done
    records = json.loads(files.read(job.path("plan", shard["plan"])))["records"]
    total = 0
    with files.written(path) as beside:
        with _writer(beside, job.file_format, job.features()) as write:
            for message in _messages(job.folder, records):
                write(message)
                total += len(message)
        with open(beside, "rb") as file:
            sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), os.path.getsize(beside)
    done = {
        "split": shard["split"],
        "file": shard["file"],
        "records": len(records),
        "bytes": size,
        "message_bytes": total,
        "sha256": sha256,
        "plan": shard["sha256"],
    }
    files.write(marker, json.dumps(done).encode())
    return done


def _messages(folder: str, records: list) -> Iterator[bytes]:
    """Records with their partners. Two concatenated messages of one type are one message with the
    entries of both (merging, in Protocol Buffers).
    """
    for place, partners in records:
        yield workdir.read_record(folder, place) + tf_example.encode(
            _PARTNERS, {"partners": np.array(partners, np.int64)}
        )


@contextlib.contextmanager
def _writer(path: str, file_format: str, features: tuple[Feature, ...]):
    """A function that appends a record to the file."""
    if file_format == "tfrecord":
        import tensorflow as tf

        with tf.io.TFRecordWriter(path) as writer:
            yield writer.write
        return
    from array_record.python.array_record_module import ArrayRecordWriter

    # One record a group, so that each can be read alone. Networks' outputs hardly compress, and
    # decompressing them would take most of the time to read them.
    outputs = any(feature.dtype == "float16" for feature in features)
    writer = ArrayRecordWriter(path, "group_size:1,uncompressed" if outputs else "group_size:1")
    try:
        yield writer.write
    finally:
        writer.close()
