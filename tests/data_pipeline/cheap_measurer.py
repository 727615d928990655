"""A measurer for tests of the pipeline around it: records of the right shapes, made of a hash of the photo's bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time

import numpy as np

from caphuman_jax.errors import DataError
from data_pipeline import example
from data_pipeline.features import features

_SECONDS = "CHEAP_MEASURER_SECONDS"  # how long a photo takes


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
    """A photo's bytes say what becomes of it: b"bad…" is dropped, b"stumble…" raises, b"full…" finds a full disk, b"who:NAME:…" shows NAME,
    b"hash:NUMBER:…" has that difference hash; all others are strangers to one another."""

    def __init__(self, settings):
        self.features = features(settings.layout())

    def measure(self, batch):
        return [self._one(*one) for one in batch]

    def _one(self, item, data):
        time.sleep(float(os.environ.get(_SECONDS, 0)))
        if isinstance(data, DataError):
            return Dropped(item.key, "unreadable", str(data))
        if data.startswith(b"bad"):
            return Dropped(item.key, "no_face", "no face was found")
        if data.startswith(b"stumble"):
            raise ValueError(f"stumbled over {item.key}")
        if data.startswith(b"full"):
            raise OSError(28, "No space left on device")
        sha = hashlib.sha256(data).digest()
        who = data.split(b":")[1] if data.startswith(b"who:") else sha
        vector = np.random.default_rng(list(hashlib.sha256(who).digest())).normal(size=192).astype(np.float32)
        vector += np.random.default_rng(list(sha)).normal(size=192).astype(np.float32) * 0.2
        record = {f.name: self._value(f, sha) for f in self.features if f.name != "partners"}
        record |= {"key": item.key, "person": item.person, "sha256": sha.hex(), "captions": list(item.captions) or ["a photo"], "attributes": "{}",
                   "recognition/mobilefacenet": vector / np.linalg.norm(vector)}
        dhash = int(data.split(b":")[1]) if data.startswith(b"hash:") else int.from_bytes(sha[:8], "big")
        return Measured(record, dhash)

    def _value(self, feature, sha):
        value = sha[0] / 255
        if feature.kind == "image":
            return _image(feature, sha[0])
        return np.full(feature.shape, value if feature.dtype.startswith("float") else sha[0], feature.dtype) if feature.kind == "array" else ""


_IMAGES: dict = {}


def _image(feature, grey):
    if (feature, grey) not in _IMAGES:
        _IMAGES[feature, grey] = example.encode_image(feature, np.full(feature.shape, grey, np.uint8))
    return _IMAGES[feature, grey]
