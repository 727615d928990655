"""CLIP's image encoder (arXiv 2103.00020); ViT-L/14 by default."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from caphuman_jax.config import ImageEncoderConfig
from caphuman_jax.nn import initializers
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.nn.layers import LayerNorm, linear, space_to_depth
from caphuman_jax.nn.transformer import Transformer
from caphuman_jax.nn.typing import Rngs

# Mean and standard deviation of CLIP's training pictures, RGB in [0, 1] (openai/CLIP, clip.py).
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalize(images: Float[Array | np.ndarray, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """RGB (…, 3) float32 in [0, 1] → what `ImageEncoder` takes. Callers apply it; the encoder does
    not.
    """
    mean, std = (broadcast_to_rank(numbers, images.ndim) for numbers in (MEAN, STD))
    return (jnp.asarray(images) - mean) / std


class ImageEncoder(nnx.Module):
    """Picture → a class token and one token a patch, for the identity projector."""

    def __init__(
        self, cfg: ImageEncoderConfig, compute: ComputeConfig = ComputeConfig(), *, rngs: Rngs
    ):
        self.patch = cfg.patch
        count = (cfg.image_size // cfg.patch) ** 2 + 1
        normal = initializers.normal(0.02)
        self.patches = linear(
            3 * cfg.patch**2, cfg.width, use_bias=False, compute=compute, rngs=rngs
        )
        self.class_token = nnx.Param(normal(rngs.params(), (cfg.width,), jnp.float32))
        self.positions = nnx.Param(normal(rngs.params(), (count, cfg.width), jnp.float32))
        self.norm_in = LayerNorm(cfg.width)
        self.transformer = Transformer(
            cfg.width,
            cfg.layers,
            cfg.heads,
            cfg.mlp_width,
            causal=False,
            activation=cfg.activation,
            compute=compute,
            rngs=rngs,
        )
        self.norm_out = LayerNorm(cfg.width)

    def __call__(
        self, images: Float[Array, "b s s 3"]
    ) -> tuple[Float[Array, "b n w"], Float[Array, "b w"]]:
        """Encode pictures.

        images (B, S, S, 3) float32 of `normalize`, S = image_size → last hidden state without the
        final norm (B, 1 + (S/patch)², width), class token first, then patches row by row; the class
        token after the final norm (B, width). Both in the compute dtype."""
        x = self.patches(space_to_depth(images, self.patch))
        batch, _, _, width = x.shape
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (batch, 1, width))
        x = jnp.concatenate([token, x.reshape(batch, -1, width)], axis=1)
        hidden = self.transformer(self.norm_in(x + self.positions[...].astype(x.dtype)[None]))
        return hidden, self.norm_out(hidden[:, 0])
