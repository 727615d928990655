"""Photos to the latents that the diffusion networks see, and back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import tiling
from caphuman_jax.nn import quantization
from caphuman_jax.nn.typing import Array


@functools.partial(jax.jit, static_argnames=("cfg", "graph"))
def encode_photos(
    params: dict, photos: Float[Array, "b H W n"], *, cfg: ModelConfig, graph
) -> Float[Array, "b h w c"]:
    """Photos (B, H, W, 3) in [0, 1] as the latents (B, h, w, C) that the diffusion networks see:
    the mean of the autoencoder's posterior, scaled; without noise, so the same at every call.

    Args:
        params, graph: of the autoencoder.
        photos: H and W multiples of its downsampling.
        cfg: the model's configuration.
    """
    vae = nnx.merge(graph, quantization.dequantize(params))
    return vae.encode(photos * 2 - 1)[0] * cfg.vae.scaling_factor


@functools.partial(jax.jit, static_argnames=("cfg", "graph", "tile"))
def decode_latents(
    params: dict, latents: Float[Array, "b h w c"], *, cfg: ModelConfig, graph, tile: int = 0
) -> Float[Array, "b H W n"]:
    """Latents (B, h, w, C) as images (B, H, W, 3) in [0, 1].

    Args:
        params, graph: of the autoencoder.
        latents: as `encode_photos` makes them.
        cfg: the model's configuration.
        tile: side in pixels of the tiles that are decoded one by one; 0: the whole image at once.
    """
    vae = nnx.merge(graph, quantization.dequantize(params))
    factor = cfg.vae.downsampling
    decoded = tiling.decode_in_tiles(
        vae.decode,
        latents / cfg.vae.scaling_factor,
        tile // factor or max(latents.shape[1:3]),
        factor,
    )
    return jnp.clip(decoded / 2 + 0.5, 0.0, 1.0)
