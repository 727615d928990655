"""What a record holds: one photo of one face, measured. This is the only place that names features,
shapes, encodings and ranges.

Records are tf.Example messages in a TFDS folder. Lengths are fractions of the stored square's side
unless they are given in pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

NAME = "caphuman_records"
VERSION = "1.0.0"
PARTNERS = 3  # other photos of the same person that a record names
MASK_SIZE = 256  # side of the two masks: finer than any latent, and decoded in 0.2 ms
RECOGNITION = {"mobilefacenet": 192, "dlib": 128, "facenet": 512, "arcface": 512}
EXPRESSIONS = 52  # ARKit's names, in the order of face.landmarks.expression_names


@dataclasses.dataclass(frozen=True)
class Feature:
    """One entry of a record.

    Attributes:
        name: of the entry; "a/b" is nested in TFDS.
        kind: "text", "texts" (any number), "image" (uint8) or "array".
        shape: of an image or array.
        dtype: of an image or array.
        encoding: of an image "jpeg" or "png"; of an array None (numbers of the message, float32 and
            int64 only), "bytes", or "zlib" (compressed bytes).
        low: least value, or None.
        high: greatest value, or None.
        meaning: in words.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    encoding: str | None = None
    low: float | None = None
    high: float | None = None
    meaning: str = ""

    def to_dict(self) -> dict:
        """JSON types; `Feature(**…)` takes them back."""
        return dataclasses.asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, fields: dict) -> Feature:
        """Inverse of `to_dict`."""
        return cls(**fields | {"shape": tuple(fields["shape"])})


TRAINED: tuple[Feature, ...] = ()
"""Arrays that both trainings hand to the loss as they are, in the field of the same name of
`caphuman_jax.training.objective.Batch`. Records, loaders and batches follow from this list.
"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What decides the shapes of a dataset's records.

    Attributes:
        size: side in pixels of the images that a model is trained on.
        stored: side in pixels of the stored square.
        identity: number of the head model's identity parameters.
        expression: number of its expressions.
        albedo: (V, 3), or (T, T, 3) for a textured head.
        identity_side: side of the identity networks' input.
        captions: rows of caption_ids.
        recognizer: the model's own, in addition to the two shipped ones, or "".
        hints: whether 8-bit rendered hints are stored too.
        moments: (h, w, 2c), or None where they are not stored.
        text: width of the encoded captions, or None.
        image_tokens: (N, W), or None.
    """

    size: int
    stored: int
    identity: int
    expression: int
    albedo: tuple[int, ...]
    identity_side: int
    captions: int
    recognizer: str = ""
    hints: bool = False
    moments: tuple[int, int, int] | None = None
    text: int | None = None
    image_tokens: tuple[int, int] | None = None


def features(layout: Layout) -> tuple[Feature, ...]:
    """Every feature of a dataset's records, sorted by name."""
    stored, mask = layout.stored, (MASK_SIZE, MASK_SIZE, 1)
    found = [
        Feature("key", "text", meaning="the photo's name in its source; unique"),
        Feature(
            "person", "text", meaning="whom the source says it shows; empty where it does not say"
        ),
        Feature("sha256", "text", meaning="of the photo's bytes, hexadecimal"),
        Feature(
            "photo",
            "image",
            (stored, stored, 3),
            "uint8",
            "jpeg",
            meaning="the upright square round the head",
        ),
        Feature(
            "covered",
            "array",
            (4,),
            low=0,
            high=1,
            meaning="x0, y0, x1, y1 of the part that the photo covers; outside its edge is "
            "repeated",
        ),
        Feature(
            "landmarks",
            "array",
            (478, 3),
            low=-1,
            high=2,
            meaning="MediaPipe's face mesh, x right, y down",
        ),
        Feature("expression", "array", (EXPRESSIONS,), low=0, high=1, meaning="ARKit weights"),
        Feature(
            "presence",
            "array",
            (),
            low=0,
            high=1,
            meaning="the landmark network's certainty that this is a face",
        ),
        Feature(
            "face_px",
            "array",
            (),
            low=0,
            meaning="larger side of the landmarks' box in the photo, pixels",
        ),
        Feature(
            "sharpness", "array", (), low=0, meaning="see data_pipeline.prepare.quality_filter"
        ),
        Feature(
            "colours",
            "array",
            (5, 4),
            meaning="Lab and share of hair, clothes, background …, see face.colors; NaN where "
            "there is none",
        ),
        Feature(
            "region",
            "image",
            mask,
            "uint8",
            "png",
            meaning="255 in the face, what CapFace's mask is taught",
        ),
        Feature(
            "person_mask",
            "image",
            mask,
            "uint8",
            "png",
            meaning="probability of a person, 255 for 1",
        ),
        Feature(
            "head/identity",
            "array",
            (layout.identity,),
            meaning="the fitted head, in pixels of the stored square; see head.Head",
        ),
        Feature("head/expression", "array", (layout.expression,)),
        Feature("head/rotation", "array", (3, 3), low=-1.0001, high=1.0001),
        Feature("head/scale", "array", (), low=0),
        Feature("head/translation", "array", (2,)),
        Feature("head/light", "array", (9, 3)),
        Feature("head/residual", "array", (), low=0),
        Feature(
            "head/albedo", "array", layout.albedo, "uint8", "zlib", meaning="colours, 255 for 1"
        ),
        Feature(
            "identity_input",
            "image",
            (layout.identity_side,) * 2 + (3,),
            "uint8",
            "jpeg",
            meaning="what the identity's image tokens are computed from: CLIP's picture, white "
            "outside the face, or the recognizer's crop",
        ),
        Feature("captions", "texts", meaning="as given, or made from what was measured"),
        Feature(
            "caption_ids",
            "array",
            (layout.captions, 77),
            "int32",
            "bytes",
            low=0,
            high=49407,
            meaning="CLIP tokens; captions in turn where fewer",
        ),
        Feature("attributes", "text", meaning="what was measured for captions, JSON"),
        Feature(
            "partners",
            "array",
            (PARTNERS,),
            "int64",
            low=-1,
            meaning="numbers of other records of the split that show the same person; -1: none",
        ),
        *TRAINED,
    ]
    for name in ("mobilefacenet", "dlib", layout.recognizer):
        if name and not any(f.name == f"recognition/{name}" for f in found):
            unit: dict[str, Any] = {} if name == "dlib" else {"low": -1, "high": 1}
            found.append(
                Feature(
                    f"recognition/{name}",
                    "array",
                    (RECOGNITION[name],),
                    **unit,
                    meaning="recognition vector",
                )
            )
    if layout.hints:
        found.append(
            Feature(
                "hints",
                "image",
                (3 * stored, stored, 3),
                "uint8",
                "png",
                meaning="normals (x/2 + 1/2), albedo and rendered below each other, 255 for 1; "
                "background: normals 128, colours 0",
            )
        )
    if layout.moments:
        found.append(
            Feature(
                "moments",
                "array",
                (2, *layout.moments),
                "float16",
                "bytes",
                meaning="VAE mean and log-variance of the middle size × size, and of its mirror "
                "image",
            )
        )
    if layout.text:
        found.append(
            Feature(
                "text",
                "array",
                (layout.captions, 77, layout.text),
                "float16",
                "bytes",
                meaning="text encoder's output for caption_ids",
            )
        )
    if layout.image_tokens:
        found.append(
            Feature(
                "image_tokens",
                "array",
                layout.image_tokens,
                "float16",
                "bytes",
                meaning="of identity_input, before the projector",
            )
        )
    return tuple(sorted(found, key=lambda f: f.name))


def to_tfds(found: tuple[Feature, ...]):
    """The same as a `tfds.features.FeaturesDict`; a name a/b becomes a nested dict."""
    import tensorflow_datasets as tfds

    def one(feature: Feature):
        if feature.kind == "text":
            return tfds.features.Text()
        if feature.kind == "texts":
            return tfds.features.Sequence(tfds.features.Text())
        if feature.kind == "image":
            return tfds.features.Image(shape=feature.shape, encoding_format=feature.encoding)
        return tfds.features.Tensor(
            shape=feature.shape, dtype=np.dtype(feature.dtype), encoding=feature.encoding or "none"
        )

    nested: dict = {}
    for feature in found:
        *above, name = feature.name.split("/")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[name] = one(feature)
    return tfds.features.FeaturesDict(nested)
