"""Outputs of a model's frozen networks, precomputed: VAE moments, text encodings, CLIP's image
tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from caphuman_jax.models import registry
from caphuman_jax.person.identity import image_tokens
from caphuman_jax.weights import model_folder
from data_pipeline.prepare.settings import PrepareSettings

# photos that are encoded at a time on an accelerator; on a CPU one at a time is 25 % faster
_BATCH = 8


class Encoder:
    """The networks of `settings.encode`, in float32, since their outputs are stored."""

    def __init__(self, settings: PrepareSettings):
        """Raises ModelFolderError if the model lacks one of them."""
        self.encode = settings.encode
        config, folder = settings.config, settings.model_folder
        assert config is not None and folder is not None, "`encode` needs a model"
        wanted = {"moments": "vae", "text": "text", "image_tokens": "image_encoder"}
        networks = registry.abstract(config, only=[wanted[name] for name in self.encode])
        params = model_folder.load_params(
            folder, {name: shapes for name, (_, shapes) in networks.items()}
        )
        self.networks = {
            name: (graph, jax.device_put(params[name])) for name, (graph, _) in networks.items()
        }

    def __call__(
        self, squares: np.ndarray, caption_ids: np.ndarray, identity_inputs: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Encode photos.

        Args:
            squares: (B, size, size, 3) uint8.
            caption_ids: (B, C, 77) int32.
            identity_inputs: CLIP's images (B, S, S, 3) uint8.

        Returns:
            {feature: float16}: moments (B, 2, h, w, 2c), mean and log-variance of the square and of
            its mirror image; text (B, C, 77, W); image_tokens (B, N, W).
        """
        found = {}
        with jax.default_matmul_precision("highest"):
            if "moments" in self.encode:
                found["moments"] = _in_batches(
                    functools.partial(moments, *self.networks["vae"]), squares
                )
            if "text" in self.encode:
                found["text"] = _in_batches(
                    functools.partial(text, *self.networks["text"]), caption_ids
                )
            if "image_tokens" in self.encode:
                found["image_tokens"] = _in_batches(
                    functools.partial(image_tokens, *self.networks["image_encoder"]),
                    identity_inputs,
                )
        return {name: array.astype(np.float16) for name, array in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def moments(graph: nnx.GraphDef, params: dict, squares: jax.Array) -> jax.Array:
    """Mean and log-variance (B, 2, h, w, 2c) of squares (B, S, S, 3) uint8 and of their mirror
    images.
    """
    pictures = squares.astype(jnp.float32) / 127.5 - 1
    both = jnp.stack([pictures, pictures[:, :, ::-1]], axis=1)
    found = jnp.concatenate(
        nnx.merge(graph, params).encode(both.reshape(-1, *pictures.shape[1:])), axis=-1
    )
    return found.reshape(-1, 2, *found.shape[1:])


@functools.partial(jax.jit, static_argnums=0)
def text(graph: nnx.GraphDef, params: dict, ids: jax.Array) -> jax.Array:
    """Text encodings (B, C, L, W) of token ids (B, C, L) int32."""
    hidden = nnx.merge(graph, params)(ids.reshape(-1, ids.shape[-1]))[0]
    return hidden.reshape(*ids.shape, -1)


def _in_batches(network, inputs: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            np.asarray(network(rows))[:count]
            for rows, count in batches(inputs, 1 if jax.default_backend() == "cpu" else _BATCH)
        ]
    )


def batches(inputs: np.ndarray, size: int):
    """(rows, count): parts of `size` rows, the last one padded with its last row, and how many of
    the rows are real.
    """
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        yield (
            (
                np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
                if len(part) < size
                else part
            ),
            len(part),
        )
