"""CLIP as a judge of whether pictures show what their prompts say (arXiv 2103.00020)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from caphuman_jax.models import clip_image, registry
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.runtime.fixed_batches import batches
from caphuman_jax.weights import clip_files

_AT_A_TIME = 8


class ClipJudge:
    """Pictures and prompts → unit vectors of one space, computed in float32.

    Attributes:
        sha256: of the projections: which CLIP it is.
    """

    def __init__(self, clip: clip_files.Clip):
        encoder = clip.config.image_encoder
        assert encoder is not None, "CLIP has an image encoder"
        self._side, self._length = encoder.image_size, clip.config.text.length
        self._tokenizer = ClipTokenizer(clip.tokenizer)
        digest = hashlib.sha256()
        for name in sorted(clip.projections):
            digest.update(np.ascontiguousarray(clip.projections[name]).tobytes())
        self.sha256 = digest.hexdigest()
        compute = ComputeConfig(jnp.dtype("float32"))
        networks = registry.abstract(clip.config, compute, only=tuple(clip.params))
        self._params = jax.device_put(dict(clip.params))
        self._projections = jax.device_put(dict(clip.projections))

        def encode(name: str, params: Any, projection: jax.Array, given: jax.Array) -> jax.Array:
            _, pooled = nnx.merge(networks[name][0], params)(given)
            vectors = pooled.astype(jnp.float32) @ projection
            return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)

        self._encode = jax.jit(encode, static_argnums=0)

    def images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, P) float32 of images (H, W, 3) uint8."""
        return self._vectors("image_encoder", [self._framed(image) for image in images])

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """(N, P) float32 of prompts; CLIP reads their first 75 tokens."""
        return self._vectors("text", list(self._tokenizer(prompts, self._length)))

    def _vectors(self, network: str, given: list[np.ndarray]) -> np.ndarray:
        found = []
        for part, filled in batches(given, _AT_A_TIME):
            batch = jnp.asarray(np.stack(filled))
            if network == "image_encoder":
                batch = clip_image.normalize(batch)
            params, projection = self._params[network], self._projections[network]
            made = self._encode(network, params, projection, batch)
            found.append(np.asarray(made)[: len(part)])
        return np.concatenate(found)

    def _framed(self, image: np.ndarray) -> np.ndarray:
        """The middle square (side, side, 3) float32 in [0, 1], scaled as for CLIP's training."""
        height, width = image.shape[:2]
        scale = self._side / min(height, width)
        size = (max(self._side, int(width * scale)), max(self._side, int(height * scale)))
        picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        left, top = ((length - self._side) // 2 for length in size)
        picture = picture.crop((left, top, left + self._side, top + self._side))
        return np.asarray(picture, np.float32) / 255


def find(clip: str | Path | None, model: Path) -> ClipJudge | None:
    """The judge in a folder of transformers, or the one that a model folder has; None: neither.

    Args:
        clip: CLIP with its projections, given by the user.
        model: the model folder.

    Raises:
        ModelFolderError: it cannot be read.
    """
    found = clip_files.of_model(model) if clip is None else clip_files.of_transformers(clip)
    return None if found is None else ClipJudge(found)
