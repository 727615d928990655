"""What a model knows a person by: the recognition vector and the image tokens that its identity projector takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from PIL import Image

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.face import parse, recognise
from caphuman_jax.models import facenet
from caphuman_jax.models.clip_image import normalise

_MISSING = {
    "facenet": "the weights of FaceNet are not in its folder; import it again with --facenet 20180402-114759-vggface2.pt",
    "arcface": "this program has no ArcFace yet",
}


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A face as the recognisers get it: `square` (S, S, 3) uint8 around the head and `region` (S, S) bool, where the face is in it;
    `context` (C, C, 3) uint8, a wider square of the same resolution, and `landmarks` (478, 3) in its pixels."""

    square: np.ndarray
    region: np.ndarray
    context: np.ndarray
    landmarks: np.ndarray


class Identifier:
    """identify(view) → recognition vector (R,) and image tokens (N, W), both float32, by the networks that the model asks for."""

    def __init__(self, config: ModelConfig | None = None, params: dict | None = None, graphs: dict | None = None):
        """Without arguments: the shipped recogniser for both. params and graphs: of "image_encoder" and "facenet", where they are used."""
        known = config.identity if config else None
        self.recogniser, self.tokens = (known.recogniser, known.image_tokens) if known else ("mobilefacenet", "recogniser")
        self.model = config.name if config else "mini"
        self.clip_side = config.image_encoder.image_size if config and config.image_encoder else None
        self.networks: dict[str, Callable] = {}
        if self.tokens not in ("clip", "recogniser") or (self.tokens == "recogniser" and self.recogniser != "mobilefacenet"):
            raise ModelFolderError(f"the model {self.model} takes its image tokens from {self.tokens} of {self.recogniser}; known: clip, "
                                   "or recogniser of mobilefacenet")
        if self.recogniser not in ("mobilefacenet", *_MISSING):
            raise ModelFolderError(f"the model {self.model} knows people by {self.recogniser}; known: mobilefacenet, {', '.join(_MISSING)}")
        for name in ("image_encoder", "facenet"):
            if params and name in params:
                self.networks[name] = _compiled(graphs[name], params[name])

    @property
    def name(self) -> str:
        """The two networks in words; people measured by others do not fit."""
        return f"{self.recogniser} and {self.tokens}"

    def __call__(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Raises ModelFolderError where the model lacks a network that it needs."""
        if self.tokens == "recogniser":
            return recognise.identity(view.context, view.landmarks)
        return self._vector(view), self._clip_tokens(view)

    def _vector(self, view):
        if self.recogniser == "mobilefacenet":
            return recognise.identity(view.context, view.landmarks)[0]
        if self.recogniser not in self.networks:
            raise ModelFolderError(f"the model {self.model} knows people by {self.recogniser}, but {_MISSING[self.recogniser]}, "
                                   "or give an identity file")
        return np.asarray(self.networks["facenet"](facenet_crop(view.context, view.landmarks)[None]), np.float32)[0]

    def _clip_tokens(self, view):
        painted = Image.fromarray(parse.paint_outside_white(view.square, view.region))
        picture = np.asarray(painted.resize((self.clip_side,) * 2, Image.Resampling.BICUBIC), np.float32) / 255
        return np.asarray(self.networks["image_encoder"](normalise(picture)[None])[0], np.float32)[0]


def facenet_crop(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """What `FaceNet` takes, (160, 160, 3): the landmarks' box, which is about MTCNN's, stretched to a square as MTCNN's is."""
    height, width = image.shape[:2]
    low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
    box = np.clip([*low, *high], 0, [width, height] * 2)
    crop = Image.fromarray(image).resize((facenet.SIZE,) * 2, Image.Resampling.BILINEAR, box=tuple(map(float, box)))
    return (np.asarray(crop, np.float32) - 127.5) / 128  # as facenet.normalise


def _compiled(graph, params):
    run = jax.jit(lambda params, x: nnx.merge(graph, params)(x))
    return lambda x: run(params, x)
