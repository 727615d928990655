"""Classifier-free guidance (arXiv 2207.12598) on the text alone.

CapFace never sees the prompt, and identity and hints stay the same in both halves, so one control pass serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from caphuman_jax.diffusion.samplers import Denoise


def text_guidance(
    unet: Callable[[jax.Array, jax.Array, Any, Any, Any], jax.Array],
    control: Callable[[jax.Array, jax.Array, Any], Any] | None,
    text: Any,
    empty_text: Any | None,
    scale: float | jax.Array = 7.0,
) -> Denoise:
    """A `denoise` function for `samplers.sample`: empty + scale · (with text − empty), in float32.

    unet(latents, timestep, text, residuals, step_constants) → prediction (B, h, w, C);
    control(latents, timestep, step_constants) → residuals, a pytree with the batch as the leaves' first axis; None
    runs the UNet with residuals None. text and empty_text: pytrees alike (token features, or keys and values computed
    beforehand), batch first. The UNet sees both halves as one batch of 2B, the empty text first. timestep is a scalar
    and step_constants have no batch axis. empty_text None means no guidance: one half, `scale` unused.
    """

    def denoise(latents, timestep, step_constants=None):
        residuals = None if control is None else control(latents, timestep, step_constants)
        if empty_text is None:
            return unet(latents, timestep, text, residuals, step_constants).astype(jnp.float32)
        twice = jax.tree.map(_doubled, (latents, residuals))
        texts = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), empty_text, text)
        output = unet(twice[0], timestep, texts, twice[1], step_constants)
        without, with_text = jnp.split(output.astype(jnp.float32), 2)
        return without + scale * (with_text - without)

    return denoise


def _doubled(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, x])
