"""Small datasets in the form that `caphuman prepare` gives them, of made-up photos: for tests of
what reads records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipeline.records import manifest, tf_example
from data_pipeline.records.schema import (
    MASK_SIZE,
    NAME,
    PARTNERS,
    RECOGNITION,
    VERSION,
    Layout,
    features,
)

LAYOUT = Layout(
    size=32, stored=44, identity=90, expression=52, albedo=(12, 3), identity_side=16, captions=3
)
CAPTIONS = ("a photo of a person", "a portrait of a smiling person", "a person, red background")


def write_standin(
    folder: str | Path,
    count: int,
    *,
    test: int = 0,
    layout: Layout = LAYOUT,
    shards: int = 2,
    seed: int = 0,
    alone: int = 3,
    change=None,
    options: str = "group_size:1",
    **what,
) -> Path:
    """Writes `count` records to split "train" and `test` to "test", in `shards` files each; returns
    the folder.

    what: fields of the Layout that are to differ (hints=True, moments=(4, 4, 8), text=16,
    image_tokens=(5, 12) …). Every `alone`-th person has one photo, the others two or three.
    change(record, number): a record changed before it is written. options: of array_record's
    writer."""
    layout = dataclasses.replace(layout, **what)
    found = features(layout)
    place = Path(folder) / NAME / VERSION
    place.mkdir(parents=True)
    splits = {}
    for split, total in (("train", count), ("test", test)):
        files = []
        partners = _partners(total, alone)
        for shard, numbers in enumerate(np.array_split(np.arange(total), shards) if total else ()):
            file = manifest.shard_name(split, shard, shards, "array_record")
            writer = ArrayRecordWriter(str(place / file), options)
            for number in numbers:
                made = record(
                    layout,
                    found,
                    int(number),
                    np.random.default_rng((seed, split == "test", int(number))),
                )
                made["partners"] = partners[number]
                made = change(made, int(number)) if change else made
                # Partners are known last: `prepare` appends them to the message, too.
                last = {"partners": made.pop("partners")}
                message = tf_example.encode([f for f in found if f.name != "partners"], made)
                writer.write(
                    message + tf_example.encode([f for f in found if f.name == "partners"], last)
                )
            writer.close()
            files.append(
                {
                    "file": file,
                    "records": len(numbers),
                    "bytes": (place / file).stat().st_size,
                    "sha256": hashlib.sha256((place / file).read_bytes()).hexdigest(),
                }
            )
        splits[split] = {"records": total, "bytes": 0, "shards": files}
    content = {
        "format": NAME,
        "version": VERSION,
        "file_format": "array_record",
        "features": [f.to_dict() for f in found],
        "settings": {"size": layout.size},
        "networks": {},
        "fingerprint": "stand-in",
        "source": {"text": "made up", "photos": count + test, "sha256": ""},
        "photos": count + test,
        "kept": count + test,
        "dropped": {},
        "moved": 0,
        "splits": splits,
    }
    (place / manifest.MANIFEST).write_bytes(manifest.to_json(content))
    (place / manifest.DROPPED).write_text("")
    return Path(folder)


def record(layout: Layout, found, number: int, rng: np.random.Generator) -> dict:
    """One record without partners: a smooth picture, a head in the middle of it that looks a little
    to one side.
    """
    stored = layout.stored
    picture = cv2.GaussianBlur(
        rng.integers(0, 256, (stored, stored, 3), np.uint8), (0, 0), stored / 12
    )
    yaw = rng.uniform(-0.4, 0.4)
    special = {
        "key": f"photo-{number:06}",
        "person": f"person-{number // 3}",
        "sha256": f"{number:064x}",
        "attributes": json.dumps({"smile": "slight"}),
        "captions": list(CAPTIONS),
        "covered": np.array([0.0, 0.02, 1.0, 1.0], np.float32),
        "presence": np.float32(0.97),
        "face_px": np.float32(rng.uniform(80, 400)),
        "sharpness": np.float32(rng.uniform(0.05, 0.4)),
        "head/rotation": np.array(
            [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]], np.float32
        ),
        "head/scale": np.float32(stored / 4.5),
        "head/translation": np.float32([stored * 0.52, stored * 0.47]),
        "head/residual": np.float32(0.02),
        "head/light": np.concatenate([np.full((1, 3), 3.0), rng.uniform(-0.2, 0.2, (8, 3))]).astype(
            np.float32
        ),
        "head/expression": rng.uniform(0, 0.3, layout.expression).astype(np.float32),
        "head/identity": rng.normal(0, 0.5, layout.identity).astype(np.float32),
        "head/albedo": rng.integers(60, 220, layout.albedo, np.uint8),
        "expression": rng.uniform(0, 0.5, 52).astype(np.float32),
        "landmarks": rng.uniform(0.3, 0.7, (478, 3)).astype(np.float32),
        "caption_ids": _token_ids(layout.captions, rng),
    }
    made = {}
    for feature in found:
        if feature.name == "partners":
            continue
        if feature.name in special:
            made[feature.name] = special[feature.name]
        elif feature.name == "photo":
            made["photo"] = tf_example.encode_image(feature, picture)
        elif feature.name in ("region", "person_mask"):
            made[feature.name] = tf_example.encode_image(
                feature, _ellipse(MASK_SIZE, 0.2 if feature.name == "region" else 0.35)[..., None]
            )
        elif feature.kind == "image":
            blurred = cv2.GaussianBlur(rng.integers(0, 256, feature.shape, np.uint8), (0, 0), 3)
            made[feature.name] = tf_example.encode_image(feature, blurred)
        elif feature.name.startswith("recognition/"):
            vector = rng.normal(size=RECOGNITION[feature.name.partition("/")[2]])
            made[feature.name] = (vector / np.linalg.norm(vector)).astype(np.float32)
        elif feature.dtype.startswith("float"):
            made[feature.name] = rng.normal(size=feature.shape).astype(feature.dtype)
        else:
            raise NotImplementedError(feature.name)
    return made


def _token_ids(captions: int, rng: np.random.Generator) -> np.ndarray:
    ids = np.full((captions, 77), 49407, np.int32)
    ids[:, 0] = 49406
    ids[:, 1:9] = rng.integers(300, 40000, (captions, 8))
    return ids


def _ellipse(side: int, radius: float) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    cv2.ellipse(
        mask,
        (side // 2, int(side * 0.48)),
        (round(side * radius), round(side * radius * 1.25)),
        0,
        0,
        360,
        255,
        -1,
    )
    return mask


def _partners(count: int, alone: int) -> np.ndarray:
    """(count, PARTNERS) int64: records 3k, 3k + 1, 3k + 2 show one person, but every `alone`-th of
    these groups shows three.
    """
    partners = np.full((count, PARTNERS), -1, np.int64)
    for i in range(count):
        group = [j for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i and j < count]
        if alone and (i // 3) % alone == 0:
            group = []
        partners[i, : len(group)] = group
    return partners
