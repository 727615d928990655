"""What a model knows a person by: the recognition vector and the image tokens that its identity
projector takes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.face import arcface, recognition, segmentation
from caphuman_jax.models import face_parsing, facenet, mtcnn
from caphuman_jax.models.clip_image import normalize
from caphuman_jax.models.registry import OPTIONAL

RECOGNIZERS = ("mobilefacenet", "facenet", "arcface")
_WIDTHS = {"mobilefacenet": 192, "facenet": facenet.WIDTH}
"""Lengths of their vectors, where they are known before the network is read."""


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A face as the recognizers take it.

    Attributes:
        square: (S, S, 3) uint8 around the head.
        region: (S, S) bool, where the face is in the square.
        context: (C, C, 3) uint8, a wider square of the same resolution.
        landmarks: (478, 3) in the context's pixels.
    """

    square: np.ndarray
    region: np.ndarray
    context: np.ndarray
    landmarks: np.ndarray

    @functools.cached_property
    def recognized(self) -> tuple[np.ndarray, np.ndarray]:
        """Vector (192,) and features (49, 512) of the shipped recognizer, which runs once."""
        return recognition.identity(self.context, self.landmarks)


class Identifier:
    """identify(view) → recognition vector (R,) and image tokens (N, W), both float32, by the
    networks that the model asks for.
    """

    def __init__(
        self,
        config: ModelConfig | None = None,
        params: dict | None = None,
        graphs: dict | None = None,
    ):
        """Without arguments: the shipped recognizer for both. params and graphs: of
        "image_encoder", and of those of `models.OPTIONAL` that the model folder holds.
        """
        known = config.identity if config else None
        self.recognizer, self.tokens = (
            (known.recognizer, known.image_tokens) if known else ("mobilefacenet", "recognizer")
        )
        self.model = config.name if config else "mini"
        self.clip_side = (
            config.image_encoder.image_size if config and config.image_encoder else None
        )
        graphs, params = graphs or {}, params or {}
        self.networks = {
            name: (graphs[name], params[name])
            for name in ("image_encoder", *OPTIONAL)
            if name in params
        }
        if self.tokens not in ("clip", "recognizer") or (
            self.tokens == "recognizer" and self.recognizer != "mobilefacenet"
        ):
            raise ModelFolderError(
                f"the model {self.model} takes its image tokens from {self.tokens} of "
                f"{self.recognizer}; known: clip, "
                "or recognizer of mobilefacenet"
            )
        if self.recognizer.partition("/")[0] not in RECOGNIZERS:
            raise ModelFolderError(
                f"the model {self.model} knows people by {self.recognizer}; known: "
                f"{', '.join(RECOGNIZERS)}"
            )
        width = _WIDTHS.get(self.recognizer)
        here = self.recognizer == "mobilefacenet" or self.recognizer in self.networks
        if known and here and width not in (None, known.recognition_width):
            raise ModelFolderError(
                f"the model {self.model} has identity.recognition_width "
                f"{known.recognition_width}, but {self.recognizer} gives {width} numbers; correct "
                "its config.json, or import it again"
            )

    @property
    def name(self) -> str:
        """The two networks in words; people measured by others do not fit."""
        return f"{self.recognizer} and {self.tokens}"

    def __call__(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Raises ModelFolderError where the model lacks a network that it needs."""
        if self.tokens == "recognizer":
            return view.recognized
        known = self.recognizer == "mobilefacenet"
        vector = view.recognized[0] if known else self.vectors([view])[0]
        tokens = image_tokens(*self.networks["image_encoder"], self.picture(view)[None])
        return vector, np.asarray(tokens, np.float32)[0]

    def vectors(self, views: Sequence[View]) -> np.ndarray:
        """The recognition vectors (N, R) alone."""
        kind, _, which = self.recognizer.partition("/")
        if kind != "facenet":
            crops = np.stack(
                [recognition.mobilefacenet_crop(view.context, view.landmarks) for view in views]
            )  # aligned to ArcFace's own five points
            return (
                recognition.mobilefacenet(crops)[0]
                if kind == "mobilefacenet"
                else self._arcface(which)(crops)
            )
        if "facenet" not in self.networks:
            raise ModelFolderError(
                f"the model {self.model} knows people by FaceNet, whose weights are not in its "
                f"folder; import it again with "
                "--facenet 20180402-114759-vggface2.pt, or give an identity file"
            )
        return np.asarray(
            facenet.embed(
                *self.networks["facenet"], np.stack([self._facenet_crop(view) for view in views])
            ),
            np.float32,
        )

    def picture(self, view: View) -> np.ndarray:
        """(C, C, 3) uint8, what CLIP's image tokens are computed from: the face, white
        around it.
        """
        region = view.region
        if "face_parsing" in self.networks:
            region = face_parsing.face_region(
                face_parsing.parse(self.networks["face_parsing"], view.square)
            )
        painted = Image.fromarray(segmentation.paint_outside_white(view.square, region))
        assert self.clip_side is not None
        side = (self.clip_side, self.clip_side)
        return np.asarray(painted.resize(side, Image.Resampling.BICUBIC))

    def _arcface(self, which):
        network = arcface.find()
        if which and network.name != which:
            raise ModelFolderError(
                f"the model {self.model} was trained with the ArcFace network {which}, and "
                f"{network.path} is another; name "
                "the right one in CAPHUMAN_ARCFACE, or give an identity file"
            )
        return network

    def _facenet_crop(self, view):
        """By MTCNN where the model has it and it sees the face."""
        names, found = ("mtcnn_pnet", "mtcnn_rnet", "mtcnn_onet"), None
        if all(name in self.networks for name in names):
            first, second, third = (self.networks[name] for name in names)
            found = mtcnn.face_crop((first, second, third), view.context, view.landmarks)
        return facenet_crop(view.context, view.landmarks) if found is None else found


def image_token_count(config: ModelConfig) -> int:
    """How many image tokens (N, W) a model knows a person by."""
    encoder = config.image_encoder
    return (encoder.image_size // encoder.patch) ** 2 + 1 if encoder else recognition.FEATURE_TOKENS


def facenet_crop(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """(160, 160, 3) uint8: the landmarks' box, which is about MTCNN's, stretched to a square as
    MTCNN's is.
    """
    height, width = image.shape[:2]
    low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
    left, top, right, bottom = map(float, np.clip([*low, *high], 0, [width, height] * 2))
    side = (facenet.SIZE, facenet.SIZE)
    square = Image.fromarray(image).resize(
        side, Image.Resampling.BILINEAR, box=(left, top, right, bottom)
    )
    return np.asarray(square)


@functools.partial(jax.jit, static_argnums=0)
def image_tokens(graph, params: dict, pictures: jax.Array) -> jax.Array:
    """CLIP's tokens (B, N, W) of pictures (B, C, C, 3) uint8, by an image encoder; compiled once
    for each B.
    """
    return nnx.merge(graph, params)(normalize(pictures.astype(jnp.float32) / 255))[0]
