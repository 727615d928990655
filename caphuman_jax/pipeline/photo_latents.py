"""What the diffusion networks take of a photo that is edited."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion.latents import decode_latents, encode_photos
from caphuman_jax.pipeline.conditioning import Conditioning
from caphuman_jax.pipeline.edit_mask import latent_mask

_GRAY = 128


def photo_latents(
    conditioning: Conditioning, config: ModelConfig, vae: dict, graph
) -> dict[str, dict[str, jax.Array]]:
    """See `Conditioning.latents`; {} where there is no photo and the model needs none.

    Args:
        conditioning: with its canvas.
        config: the model's.
        vae, graph: parameters and graphdef of the autoencoder.
    """
    canvas, factor = conditioning.canvas, config.vae.downsampling
    size, found = conditioning.request.params.shape, {}
    mask = np.ones((size[0] // factor, size[1] // factor, 1), np.float32)

    def encode(image: np.ndarray) -> jax.Array:
        pixels = jnp.asarray(image[None], jnp.float32) / 255
        return encode_photos(vae, pixels, cfg=config, graph=graph)[0]

    if canvas is not None:
        mask = latent_mask(canvas.mask, factor)
        # An inpainting model sees the photo, and fits what it makes to it by itself.
        kept = np.ones_like(mask) if config.inpainting else mask
        found["known"] = {"latents": encode(canvas.rough), "mask": kept}
    if config.inpainting:
        image = np.full((*size, 3), _GRAY, np.uint8)
        if canvas is not None:
            image = np.where(canvas.mask[..., None] > 1 / 255, image, canvas.image)
        found["visible"] = {"latents": encode(image), "mask": mask}
    return jax.tree.map(jnp.asarray, found)


def with_reconstruction(
    conditioning: Conditioning, config: ModelConfig, vae: dict, graph, tile: int
) -> Conditioning:
    """A conditioning whose canvas, if it has one, knows what the autoencoder makes of it.

    Args:
        conditioning: with its latents.
        config: the model's.
        vae, graph: parameters and graphdef of the autoencoder.
        tile: larger images are decoded in tiles of this many pixels; 0: never.
    """
    canvas = conditioning.canvas
    if canvas is None:
        return conditioning
    tile = tile if max(canvas.mask.shape) > tile else 0
    latents = conditioning.latents["known"]["latents"][None]
    image = decode_latents(vae, latents, cfg=config, graph=graph, tile=tile)[0]
    seen = np.asarray(image, np.float32) * 255
    return dataclasses.replace(
        conditioning, canvas=dataclasses.replace(canvas, reconstruction=seen)
    )
