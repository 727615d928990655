"""What decides the records that are made of photos: everything that one could choose, and the
networks that measure.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import SettingError
from caphuman_jax.face import arcface
from caphuman_jax.face.attributes import DRAWING_SCORE
from caphuman_jax.face.crop import HEAD_SQUARE, MARGIN
from caphuman_jax.head.models import registry as head_models
from caphuman_jax.io import metadata
from caphuman_jax.weights import model_folder as folder
from data_pipeline.records.schema import RECOGNITION, VERSION, Layout

ENCODINGS = ("moments", "text", "image_tokens")
FACES, HINTS, SAME_PERSON, KEEP = (
    ("one", "largest"),
    ("head", "pictures"),
    ("given", "recognition"),
    ("drop", "keep"),
)
_ASSETS = Path(str(files("caphuman_jax") / "assets"))
# of the measuring itself: raised when the same settings and networks begin to give other records
_REVISION = 4


@dataclasses.dataclass(frozen=True)
class QualityThresholds:
    """Which photos are good enough to learn from.

    faces: "one" drops a photo of several faces, "largest" takes its largest. A second person in the
        frame is neither described by the head nor by the identity, so the model would learn to add
        strangers.
    min_face: pixels of the larger side of the landmarks' box, in the photo; None: so many that the
        photo is not enlarged more than twofold to the size trained on (142 at 512, 71 at 256).
        Beyond that three quarters of the pixels are made up.
    min_sharpness: see `quality_filter.sharpness`; every portrait in focus had 0.16 and more; half
    of them fall below 0.12 when blurred by 1 % of the face.
    max_yaw, max_pitch, max_roll: degrees. The far side of a face turned further is guessed by the
    landmark network.
    min_presence: that the landmarks lie on a face; what has less is mostly ears, hands and
    profiles.
    min_confidence: of the head (`Head.confidence`); 0.3 is a median landmark 8 % of the eye
    distance off. Fitted ones have 0.9, DECA's less.
    max_outside: part of the face outside of the photo, where landmarks are guessed and pixels
    repeated.
    min_covered: part of the square trained on that the photo covers. The rest repeats the photo's
    edge, streaks that would be learnt.
    drawings: "drop" leaves out pictures whose score of the probe for drawings is above
        drawing_score. The probe misses most paintings, and a low limit drops photos, of women more
        often than of men; so "keep" is the default.
    duplicates: "drop" keeps the first by key of photos whose difference hashes lie within
    duplicate_bits of 64 of one another.
    """

    faces: str = "one"
    min_face: float | None = None
    min_sharpness: float = 0.12
    max_yaw: float = 60.0
    max_pitch: float = 40.0
    max_roll: float = 45.0
    min_presence: float = 0.8
    min_confidence: float = 0.3
    max_outside: float = 0.05
    min_covered: float = 0.5
    drawings: str = "keep"
    drawing_score: float = DRAWING_SCORE
    duplicates: str = "drop"
    duplicate_bits: int = 2

    def __post_init__(self):
        _one_of("faces", self.faces, FACES)
        _one_of("drawings", self.drawings, KEEP)
        _one_of("duplicates", self.duplicates, KEEP)
        for name, low, high in (
            ("min_sharpness", 0, 10),
            ("max_yaw", 0, 180),
            ("max_pitch", 0, 180),
            ("max_roll", 0, 180),
            ("min_presence", 0, 1),
            ("min_confidence", 0, 1),
            ("max_outside", 0, 1),
            ("min_covered", 0, 1),
            ("drawing_score", -1000, 1000),
            ("duplicate_bits", 0, 64),
        ):
            _number(name, getattr(self, name), low, high)
        if self.min_face is not None:
            _number("min_face", self.min_face, 0, 10_000)


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """Settings of a whole dataset. Raises SettingError for what cannot be used, ModelFolderError
    for a model that is not there.

    size: side of the pictures to train on. margin: the stored square over it, room for shifts and
    turns. quality: of its JPEG.
    captions: how many token rows a record holds (given captions first; else so many are made of
    what was measured).
    captioner: folder of an image-to-text model for transformers that writes them instead. hints:
    "head" keeps the head's numbers, from which hints are rendered in training; "pictures" keeps
    those too. model: name or folder of the model to train, whose recognizer, identity input, head
    model and tokenizer are taken; None: the shipped ones. encode: what of ENCODINGS to compute with
    it.
    same_person: "given" pairs photos by the source's person ids, "recognition" by recognition
    vectors.
    hold_out: one person in so many is held out for testing; 0: nobody. seed: of captions.
    """

    size: int = 512
    margin: float = MARGIN
    quality: int = 95
    thresholds: QualityThresholds = dataclasses.field(default_factory=QualityThresholds)
    captions: int = 4
    captioner: str | None = None
    hints: str = "head"
    model: str | None = None
    encode: tuple[str, ...] = ()
    same_person: str = "given"
    hold_out: int = 16
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(
            self,
            "encode",
            tuple(name for name in ENCODINGS if name in self.encode)
            if set(self.encode) <= set(ENCODINGS)
            else None,
        )
        if self.encode is None:
            raise SettingError(f"encode takes some of {', '.join(ENCODINGS)}")
        _one_of("hints", self.hints, HINTS)
        _one_of("same_person", self.same_person, SAME_PERSON)
        for name, low, high in (
            ("size", 32, 2048),
            ("quality", 50, 100),
            ("captions", 1, 64),
            ("hold_out", 0, 10**6),
            ("seed", 0, 2**32 - 1),
        ):
            _number(name, getattr(self, name), low, high, whole=True)
        _number("margin", self.margin, 1, 3)
        if self.size % 8:
            raise SettingError(f"size must be a multiple of 8, not {self.size}")
        if self.hold_out == 1:
            raise SettingError(
                "hold_out 1 leaves nobody to train on; give 2 or more, or 0 to hold nobody out"
            )
        if self.encode and not self.model:
            raise SettingError(
                f"{', '.join(self.encode)} come from a model: name its folder, or leave them out"
            )
        config = self.config
        if config and "image_tokens" in self.encode and config.identity.image_tokens != "clip":
            raise SettingError(
                f"the image tokens of {config.name} come from its recognizer in training; leave "
                f"image_tokens out"
            )
        if config and "moments" in self.encode and self.size % config.vae.downsampling:
            raise SettingError(
                f"size must be a multiple of {config.vae.downsampling} for {config.name}'s "
                f"autoencoder, not {self.size}"
            )

    @property
    def stored(self) -> int:
        """Side of the stored square in pixels: about size × margin, and such that its middle size ×
        size lies on whole pixels.
        """
        return self.size + 2 * round(self.size * (self.margin - 1) / 2)

    @property
    def head_square(self) -> float:
        """Side of the stored square over the larger side of the landmarks' upright box."""
        return HEAD_SQUARE * self.stored / self.size

    @property
    def min_face(self) -> float:
        """The threshold, or what `size` asks for."""
        return (
            math.floor(self.size / HEAD_SQUARE / 2)
            if self.thresholds.min_face is None
            else self.thresholds.min_face
        )

    @property
    def config(self) -> ModelConfig | None:
        """The model's."""
        return None if self.model is None else _read_model(self.model)[1]

    @property
    def model_folder(self) -> Path | None:
        """Where the model is."""
        return None if self.model is None else _read_model(self.model)[0]

    @property
    def head_model(self) -> str:
        """Name for `head.models.registry.find`."""
        return self.config.head if self.config else head_models.SHIPPED

    @property
    def recognizer(self) -> str:
        """The model's own, without the part that says which of its weights; "" where it is one that
        is always there.
        """
        config = self.config
        name = config.identity.recognizer.partition("/")[0] if config else ""
        if config and name and name not in RECOGNITION:
            raise SettingError(
                f"the model {config.name} knows people by {name}; known: {', '.join(RECOGNITION)}"
            )
        return "" if name in ("mobilefacenet", "dlib") else name

    @property
    def identity_side(self) -> int:
        """Side of the picture that the model's image tokens are computed from."""
        config = self.config
        if config and config.image_encoder and config.identity.image_tokens == "clip":
            return config.image_encoder.image_size
        return 112

    def layout(self) -> Layout:
        """The shapes of the records."""
        head, config = head_models.load_head(self.head_model), self.config
        moments = text = tokens = None
        assert config is not None or not self.encode, "`encode` needs a model"
        if config and "moments" in self.encode:
            side = self.size // config.vae.downsampling
            moments = side, side, 2 * config.vae.latent_channels
        if config and "text" in self.encode:
            text = config.text.width
        if config and config.image_encoder and "image_tokens" in self.encode:
            encoder = config.image_encoder
            tokens = 1 + (encoder.image_size // encoder.patch) ** 2, encoder.width
        return Layout(
            size=self.size,
            stored=self.stored,
            identity=len(head.identity_basis),
            expression=len(head.expression_names),
            albedo=self._albedo_shape(head),
            identity_side=self.identity_side,
            captions=self.captions,
            recognizer=self.recognizer,
            hints=self.hints == "pictures",
            moments=moments,
            text=text,
            image_tokens=tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON types; `from_dict` takes them back. Records keep them, with the thresholds as
        "gate".
        """
        fields = dataclasses.asdict(self) | {"encode": list(self.encode)}
        return fields | {"gate": fields.pop("thresholds")}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PrepareSettings:
        """Inverse of `to_dict`. Raises SettingError for unknown entries."""
        fields = dict(fields)
        thresholds, encode = fields.pop("gate", {}), fields.pop("encode", ())
        unknown = set(fields) - {f.name for f in dataclasses.fields(cls)}
        unknown |= set(thresholds) - {f.name for f in dataclasses.fields(QualityThresholds)}
        if unknown:
            raise SettingError(f"there is no setting called {', '.join(sorted(unknown))}")
        return cls(**fields, thresholds=QualityThresholds(**thresholds), encode=tuple(encode))

    def network_hashes(self) -> dict[str, str]:
        """{name: SHA-256} of every file of numbers that measuring takes part in, sorted by name."""
        files = {
            f"face/{p.name}": p
            for p in (_ASSETS / "face").iterdir()
            if p.suffix in (".onnx", ".npz", ".json")
        }
        files |= {f"text/{p.name}": p for p in (_ASSETS / "text").glob("*.xz")}
        source, path = head_models.find(self.head_model)
        files |= source.files(path)
        if self.captioner:
            place = Path(self.captioner).expanduser()
            files |= {
                f"captioner/{p.relative_to(place).as_posix()}": p
                for p in place.rglob("*")
                if p.is_file() and not p.name.startswith(".")
            }
        found = {name: _sha256(str(path), path.stat().st_mtime_ns) for name, path in files.items()}
        model = self.model_folder
        if model is not None:
            found |= {
                f"model/{name}": sha
                for name, sha in metadata.checksums(model).items()
                if name in self.networks()
            }
            found |= {
                f"model/tokenizer/{p.name}": _sha256(str(p), p.stat().st_mtime_ns)
                for p in folder.tokenizer_files(model) or ()
            }
        if self.recognizer == "arcface":
            network = arcface.find()
            found[f"arcface/{network.name}"] = network.sha256
        return dict(sorted(found.items()))

    def networks(self) -> tuple[str, ...]:
        """The model folder's networks that measuring or encoding uses, of those that it holds."""
        model, config = self.model_folder, self.config
        if model is None or config is None:
            return ()
        there, wanted = metadata.checksums(model), []
        wanted += [
            name
            for name, use in (
                ("vae", "moments"),
                ("text", "text"),
                ("image_encoder", "image_tokens"),
            )
            if use in self.encode
        ]
        wanted += (
            ["facenet", "mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet"]
            if self.recognizer == "facenet"
            else []
        )
        wanted += ["face_parsing"] if config.identity.image_tokens == "clip" else []
        wanted += head_models.find(self.head_model)[0].networks
        return tuple(name for name in wanted if name in there)

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the records, but not of where the model and the
        captioner lie.
        """
        config = self.config
        settings = self.to_dict() | {
            "model": config and config.to_dict(),
            "captioner": bool(self.captioner),
            "min_face": self.min_face,
        }
        parts = {
            "version": VERSION,
            "revision": _REVISION,
            "settings": settings,
            "networks": self.network_hashes(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _albedo_shape(self, head) -> tuple[int, ...]:
        source, path = head_models.find(self.head_model)
        return source.estimated_albedo(head, path, self.networks())


@functools.cache
def _read_model(name: str) -> tuple[Path, ModelConfig]:
    path = folder.find_model(name)
    return path, folder.read_config(path)


@functools.cache
def _sha256(path: str, changed: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingError(f"{name} is {' or '.join(known)}, not {value!r}")


def _number(name: str, value, low: float, high: float, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    if (
        isinstance(value, bool)
        or not isinstance(value, int if whole else (int, float))
        or not low <= value <= high
    ):
        raise SettingError(f"{name} must be {kind} from {low:g} to {high:g}, not {value!r}")
