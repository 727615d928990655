"""Photos to what their records hold. Photos are read one by one; recognition, heads and
encodings then run in batches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

import cv2
import jax
import numpy as np

from caphuman_jax.errors import DataError, HeadError, PhotoError
from caphuman_jax.face import attributes, recognition
from caphuman_jax.face.colors import background_kind, measure_colors
from caphuman_jax.face.crop import crop_square, head_square
from caphuman_jax.face.face import Face, find_faces
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.face.onnx_runner import network, providers
from caphuman_jax.head import pose
from caphuman_jax.head.camera import transform_head
from caphuman_jax.head.face_fitting import face_region
from caphuman_jax.head.head import Head
from caphuman_jax.head.models import registry as head_models
from caphuman_jax.io.images import read_photo
from caphuman_jax.models import registry
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.nn.typing import Array
from caphuman_jax.person.identity import Identifier, View
from caphuman_jax.weights import model_folder
from data_pipeline.prepare import captions, quality_filter
from data_pipeline.prepare.encode import Encoder, batches
from data_pipeline.prepare.heads import HEADS, fit_squares, hint_pictures, middle_of
from data_pipeline.prepare.settings import PrepareSettings
from data_pipeline.records.schema import MASK_SIZE, features
from data_pipeline.records.tf_example import encode_image
from data_pipeline.sources.base import Item


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A photo that is left out; `reason` is one of `quality_filter.REASONS`."""

    key: str
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A photo that is kept.

    Attributes:
        key: of the photo.
        record: {feature's name: value}, see records.schema, without `partners`.
        dhash: 64 bits of `quality_filter.difference_hash`.
    """

    key: str
    record: dict
    dhash: int


@dataclasses.dataclass(frozen=True, eq=False)
class _FaceCandidate:
    """A face that passed the first part of the quality filter.

    Attributes:
        item: of the photo.
        sha256: of the photo's file.
        face: in the photo's pixels.
        pixels: `quality_filter.face_pixels`.
        sharpness: `quality_filter.sharpness`.
        square: (S, S, 3) uint8, the stored one.
        landmarks: (478, 3) in its pixels.
        covered: (4,) in its pixels.
        head: from a network, or None where heads are fitted.
    """

    item: Item
    sha256: str
    face: Face
    pixels: float
    sharpness: float
    square: np.ndarray
    landmarks: np.ndarray
    covered: np.ndarray
    head: Head | None


class Measurer:
    """Measures photos, with the networks loaded once. Results are a function of the settings and
    the photos; on a CPU bit for bit, whatever is in the same batch and however many threads there
    are."""

    def __init__(self, settings: PrepareSettings):
        """Raises ModelFolderError or HeadError if a network or a head model is missing."""
        cv2.setNumThreads(1)
        self.settings = settings
        self._features = {feature.name: feature for feature in features(settings.layout())}
        self._head_model = head_models.load_head(settings.head_model)
        config, folder = settings.config, settings.model_folder
        self._identify, found = Identifier(), {}
        if config is not None and folder is not None:
            networks = registry.abstract(
                config, only=[n for n in settings.networks() if n in registry.OPTIONAL]
            )
            params = model_folder.load_params(
                folder, {name: shapes for name, (_, shapes) in networks.items()}
            )
            params = {name: jax.device_put(tree) for name, tree in params.items()}
            graphs = {name: graph for name, (graph, _) in networks.items()}
            self._identify = Identifier(config, params, graphs)
            found = {name: (graphs[name], params[name]) for name in params}
        self._head_of = head_models.load_estimator(settings.head_model, found)
        self._encode = Encoder(settings) if settings.encode else None
        self._tokenize = ClipTokenizer(
            model_folder.tokenizer_files(folder) if folder is not None else None
        )
        self._caption = (
            captions.transformers_captioner(settings.captioner) if settings.captioner else None
        )

    def measure(self, batch: Sequence[tuple[Item, bytes | DataError]]) -> list[Measured | Dropped]:
        """Measure each item, in order. A bad photo never raises; it is `Dropped`."""
        results: list = [self._candidate(item, data) for item, data in batch]
        for stage in (self._recognized, self._fitted, self._recorded):
            there = [i for i, result in enumerate(results) if not isinstance(result, Dropped)]
            for i, result in zip(there, stage([results[i] for i in there]) if there else []):
                results[i] = result
        return results

    def _candidate(self, item: Item, data: bytes | DataError) -> _FaceCandidate | Dropped:
        if isinstance(data, DataError):
            return Dropped(item.key, "unreadable", str(data))
        try:
            photo = read_photo(data)
        except PhotoError as problem:
            return Dropped(item.key, "unreadable", str(problem))
        faces = find_faces(photo)
        if not faces:
            return Dropped(item.key, "no_face")
        if len(faces) > 1 and self.settings.thresholds.faces == "one":
            return Dropped(item.key, "several_faces", f"{len(faces)} faces")
        face = faces[0]
        size = self.settings.stored
        center, side = head_square(face.landmarks, self.settings.head_square)
        square, place, covered = crop_square(photo, center, side, size)
        sharp = quality_filter.sharpness(photo, face.landmarks)
        bad = (
            quality_filter.by_landmarks(
                self.settings, face.landmarks, face.presence, photo.shape[:2]
            )
            or quality_filter.by_covered(self.settings, covered)
            or quality_filter.by_sharpness(self.settings, sharp)
        )
        if bad:
            return Dropped(item.key, *bad)
        landmarks = face.landmarks * np.float32(size / side)
        landmarks[:, :2] += place[:, 2].astype(np.float32)
        head = None
        if self._head_of:
            try:
                head = transform_head(
                    self._head_of(photo, face.landmarks), self._head_model, place, size, size
                )
            except (HeadError, PhotoError) as problem:
                return Dropped(item.key, "no_head", str(problem))
        pixels = quality_filter.face_pixels(face.landmarks)
        return _FaceCandidate(
            item,
            hashlib.sha256(data).hexdigest(),
            face,
            pixels,
            sharp,
            square,
            landmarks,
            covered,
            head,
        )

    def _recognized(self, candidates: list[_FaceCandidate]) -> list:
        """(candidate, {feature: recognition vector}, scores of the probes), or Dropped, of each."""
        crop = lambda cut: np.stack(
            [cut(candidate.square, candidate.landmarks) for candidate in candidates]
        )
        vectors, maps = _run(recognition.mobilefacenet, crop(recognition.mobilefacenet_crop))
        found = {
            "mobilefacenet": vectors,
            "dlib": _run(lambda crops: (recognition.dlib(crops),), crop(recognition.dlib_crop))[0],
        }
        own = self.settings.recognizer
        if own:
            views = [self._view(candidate) for candidate in candidates]
            found[own] = np.concatenate(
                [
                    self._identify.vectors(list(rows))[:count]
                    for rows, count in batches(np.array(views, object), HEADS)
                ]
            )
        scores = attributes.scores(maps)
        drawings = scores[:, attributes.names().index("drawing")]
        results: list = []
        for i, candidate in enumerate(candidates):
            bad = quality_filter.by_drawing(self.settings, drawings[i])
            numbers = {
                f"recognition/{name}": rows[i].astype(np.float32) for name, rows in found.items()
            }
            results.append(
                Dropped(candidate.item.key, *bad) if bad else (candidate, numbers, scores[i])
            )
        return results

    def _fitted(self, found: list) -> list:
        """The same with the head added, in the stored square's pixels, or Dropped."""
        candidates = [candidate for candidate, *_ in found]
        heads = (
            [jax.device_get(candidate.head) for candidate in candidates]
            if self._head_of
            else fit_squares(
                self._head_model,
                [candidate.square for candidate in candidates],
                [candidate.landmarks for candidate in candidates],
                [candidate.covered for candidate in candidates],
                [candidate.face.expression for candidate in candidates],
                self.settings.size,
            )
        )
        angles = np.asarray(_angles(np.stack([head.rotation for head in heads])))
        results: list = []
        for (candidate, *rest), head, turned in zip(found, heads, angles):
            bad = quality_filter.by_head(self.settings, turned, float(head.confidence))
            results.append(Dropped(candidate.item.key, *bad) if bad else (candidate, *rest, head))
        return results

    def _recorded(self, found: list) -> list[Measured]:
        records = [self._record(*one) for one in found]
        candidates = [candidate for candidate, *_ in found]
        for record, texts in zip(records, self._captions(candidates, records)):
            rows = self._tokenize(texts[: self.settings.captions])
            record["captions"], record["caption_ids"] = (
                texts,
                rows[np.arange(self.settings.captions) % len(rows)],
            )
        pictures = [record.pop("identity_input") for record in records]
        if self._encode:
            squares, ids = (
                np.stack([self._middle(candidate.square) for candidate in candidates]),
                np.stack([record["caption_ids"] for record in records]),
            )
            for name, rows in self._encode(squares, ids, np.stack(pictures)).items():
                for record, row in zip(records, rows):
                    record[name] = row
        if self.settings.hints == "pictures":
            rendered = hint_pictures(self._head_model, records, self.settings.stored)
            for record, picture in zip(records, rendered):
                record["hints"] = self._image("hints", picture)
        for record, picture in zip(records, pictures):
            record["identity_input"] = self._image("identity_input", picture)
        return [
            Measured(candidate.item.key, record, quality_filter.difference_hash(candidate.square))
            for candidate, record in zip(candidates, records)
        ]

    def _record(
        self, candidate: _FaceCandidate, numbers: dict, scores: np.ndarray, head: Head
    ) -> dict:
        """The record without captions, encodings and hints; identity_input is not encoded yet."""
        size = np.float32(self.settings.stored)
        small = cv2.resize(candidate.square, (MASK_SIZE, MASK_SIZE), interpolation=cv2.INTER_AREA)
        person = np.clip(
            network("person_segmentation")(small[None].astype(np.float32) / 255)[0].reshape(
                MASK_SIZE, MASK_SIZE
            ),
            0,
            1,
        )
        region = face_region(candidate.landmarks * (MASK_SIZE / size), (MASK_SIZE, MASK_SIZE))
        marks, covered = candidate.landmarks / size, np.clip(candidate.covered / size, 0, 1)
        colors = measure_colors(candidate.square, person, marks, covered)
        expression = np.clip(candidate.face.expression, 0, 1).astype(np.float32)
        worn = attributes.worn(scores)
        said = captions.attributes(
            dict(zip(expression_names(), expression.tolist())),
            colors,
            worn,
            background_kind(candidate.square, person, covered),
        )
        scalar = lambda value: np.asarray(value, np.float32)
        clip = self._identify.tokens == "clip"
        picture = (
            self._identify.picture(self._view(candidate))
            if clip
            else recognition.mobilefacenet_crop(candidate.square, candidate.landmarks)
        )
        shape = {
            f"head/{name}": np.asarray(getattr(head, name), np.float32)
            for name in (
                "identity",
                "expression",
                "rotation",
                "scale",
                "translation",
                "light",
                "residual",
            )
        }
        return (
            numbers
            | shape
            | {
                "key": candidate.item.key,
                "person": candidate.item.person,
                "sha256": candidate.sha256,
                "photo": self._image("photo", candidate.square),
                "covered": covered.astype(np.float32),
                "landmarks": marks.astype(np.float32),
                "expression": expression,
                "presence": scalar(candidate.face.presence),
                "face_px": scalar(candidate.pixels),
                "sharpness": scalar(candidate.sharpness),
                "colours": colors,
                "region": self._image("region", region[..., None].astype(np.uint8) * 255),
                "person_mask": self._image(
                    "person_mask", np.rint(person * 255).astype(np.uint8)[..., None]
                ),
                "head/albedo": np.rint(np.clip(head.albedo, 0, 1) * 255).astype(np.uint8),
                "identity_input": picture,
                "attributes": json.dumps(said, sort_keys=True),
            }
        )

    def _captions(self, candidates: list[_FaceCandidate], records: list[dict]) -> list[list[str]]:
        """The given captions, or a captioner's, or captions composed of what was measured."""
        written = iter(
            self._caption(
                [
                    self._middle(candidate.square)
                    for candidate in candidates
                    if not candidate.item.captions
                ]
            )
            if self._caption
            else []
        )
        texts = []
        for candidate, record in zip(candidates, records):
            given = list(candidate.item.captions) or ([next(written)] if self._caption else [])
            texts.append(
                given
                if any(given)
                else captions.compose_several(
                    json.loads(record["attributes"]),
                    candidate.item.key,
                    self.settings.seed,
                    self.settings.captions,
                )
            )
        return texts

    def _view(self, candidate: _FaceCandidate) -> View:
        """As `person.analyze_photo` gives it to the recognizers."""
        size, stored = self.settings.size, self.settings.stored
        inner = candidate.landmarks - np.array([(stored - size) / 2] * 2 + [0], np.float32)
        region = face_region(inner, (size, size))
        return View(self._middle(candidate.square), region, candidate.square, candidate.landmarks)

    def _middle(self, square: np.ndarray) -> np.ndarray:
        return middle_of(square, self.settings.size)

    def _image(self, name: str, pixels: np.ndarray) -> bytes:
        return encode_image(self._features[name], pixels, self.settings.quality)


def _run(function: Callable, crops: np.ndarray) -> list[np.ndarray]:
    """Run a recognition network on crops: one at a time on a CPU, where batches are not faster, and
    in batches of one size on a GPU."""
    size = 16 if "CUDAExecutionProvider" in providers() else 1
    parts = [[output[:count] for output in function(rows)] for rows, count in batches(crops, size)]
    return [np.concatenate(outputs) for outputs in zip(*parts)]


@jax.jit
def _angles(rotations: Array) -> Array:
    return pose.angles(rotations)
