"""Sinusoidal timestep embedding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def timestep_embedding(timesteps: jax.Array, width: int) -> jax.Array:
    """Features of the diffusion timestep, cosines before sines (the order of latent diffusion's
    weights).

    timesteps (B,) float32, in training steps (0 … 999) → (B, width) float32; `width` even. The
    frequencies fall geometrically from 1 to 1/10000 (Vaswani et al. 2017, section 3.5). bfloat16
    cannot hold timesteps: it is refused."""
    if timesteps.dtype != jnp.float32:
        raise TypeError(f"timesteps must be float32, not {timesteps.dtype}")
    half = width // 2
    frequencies = jnp.exp(
        jnp.arange(half, dtype=jnp.float32) * jnp.float32(-math.log(10000) / half)
    )
    angles = timesteps[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
