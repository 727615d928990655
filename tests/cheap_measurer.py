"""Settings and a measurer for tests of the pipeline around them: small records of the right shapes,
made of a hash of the photo's bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time

import numpy as np

from caphuman_jax.errors import DataError
from data_pipeline.prepare.settings import QualityThresholds
from data_pipeline.records import tf_example
from data_pipeline.records.schema import Layout, features

SECONDS = "CHEAP_MEASURER_SECONDS"  # environment variable: how long a photo takes


@dataclasses.dataclass(frozen=True)
class CheapSettings:
    """As PrepareSettings, of records of a few kilobytes."""

    thresholds: QualityThresholds = QualityThresholds()
    same_person: str = "given"
    hold_out: int = 16
    seed: int = 0
    size: int = 16

    def to_dict(self):
        fields = dataclasses.asdict(self)
        return fields | {"gate": fields.pop("thresholds")}

    def fingerprint(self):
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()

    def network_hashes(self):
        return {"face/cheap.onnx": "00"}

    def layout(self):
        return Layout(
            size=self.size,
            stored=self.size + 4,
            identity=3,
            expression=2,
            albedo=(4, 3),
            identity_side=8,
            captions=2,
        )


@dataclasses.dataclass(frozen=True)
class Measured:
    record: dict
    dhash: int


@dataclasses.dataclass(frozen=True)
class Dropped:
    key: str
    reason: str
    detail: str


class CheapMeasurer:
    """A photo's bytes say what becomes of it: b"bad…" is dropped, b"stumble…" raises, b"full…"
    finds a full disk, b"lost…" loses its device, b"who:NAME:…" shows NAME, b"hash:NUMBER:…" has
    that difference hash. All others are strangers to one another.
    """

    def __init__(self, settings):
        self.features = features(settings.layout())

    def measure(self, batch):
        return [self._one(*one) for one in batch]

    def _one(self, item, data):
        time.sleep(float(os.environ.get(SECONDS, 0)))
        if isinstance(data, DataError):
            return Dropped(item.key, "unreadable", str(data))
        if data.startswith(b"bad"):
            return Dropped(item.key, "no_face", "")
        if data.startswith(b"stumble"):
            raise ValueError(f"stumbled over {item.key}")
        if data.startswith(b"full"):
            raise OSError(28, "No space left on device")
        if data.startswith(b"lost"):
            raise RuntimeError("the device is lost")
        sha = hashlib.sha256(data).digest()
        dhash = (
            int(data.split(b":")[1])
            if data.startswith(b"hash:")
            else int.from_bytes(sha[:8], "big")
        )
        who = (
            data.split(b":")[1]
            if data.startswith(b"who:")
            else b"one"
            if data.startswith(b"hash:")
            else sha
        )
        record = {f.name: _value(f, sha[0]) for f in self.features if f.name != "partners"}
        record |= {
            "key": item.key,
            "person": item.person,
            "sha256": sha.hex(),
            "captions": list(item.captions) or ["a photo"],
            "attributes": "{}",
            "recognition/mobilefacenet": vector_of(who, sha),
        }
        return Measured(record, dhash)


def vector_of(who: bytes, photo: bytes = b"") -> np.ndarray:
    """A recognition vector (192,) of length 1: a person's, and a little of the photo's."""
    vector = sum(
        scale * np.random.default_rng(list(hashlib.sha256(text).digest())).normal(size=192)
        for text, scale in ((who, 1), (photo, 0.2))
    )
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _value(feature, grey):
    if feature.kind == "image":
        return _image(feature, grey)
    if feature.kind != "array":
        return ""
    return np.full(
        feature.shape, grey / 255 if feature.dtype.startswith("float") else grey, feature.dtype
    )


@functools.cache
def _image(feature, grey):
    return tf_example.encode_image(feature, np.full(feature.shape, grey, np.uint8))


def write_photos(folder, contents: dict[str, bytes]) -> str:
    """A folder of "photos"."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)
